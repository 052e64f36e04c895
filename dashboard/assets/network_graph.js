// Clicks on a network that Graphviz has drawn, and the layer that stands out moved into sight.
const WAIT_MS = 150, MOST_WAITS = 60;

export default function ({ data, setTriggerValue }) {
  const place = document.querySelector(`.st-key-${data.place}`);
  if (!place) return;
  place.onclick = (event) => {
    const node = event.target.closest?.("g.node");
    const name = node && data.names[node.querySelector("title")?.textContent];
    if (name !== undefined && name !== null) setTriggerValue("clicked", name);
  };
  let waits = 0;
  const timer = setInterval(() => {
    const nodes = [...place.querySelectorAll("g.node")];
    if (nodes.length >= Object.keys(data.names).length || ++waits > MOST_WAITS) {
      clearInterval(timer);
      const seen = `${data.shown}\n${nodes.length}`;
      const node = nodes.find((each) => each.querySelector("title")?.textContent === data.shown);
      if (node && place.seen !== seen) node.scrollIntoView({ block: "nearest", inline: "center" });
      place.seen = seen;
    }
  }, WAIT_MS);
  return () => clearInterval(timer);
}

// What a page writes into its address by itself, having been come to, is no step to go back to: only what
// follows a click or a key is. Streamlit makes a step of every change.
if (!window.qafSteps) {
  window.qafSteps = true;
  const push = history.pushState.bind(history);
  let acted = false;
  for (const kind of ["pointerdown", "keydown", "change"]) {
    window.addEventListener(kind, () => { acted = true; }, true);
  }
  history.pushState = (state, title, url) => {
    const here = new URL(url, location.href).pathname === location.pathname;
    if (here && !acted) history.replaceState(state, title, url);
    else push(state, title, url);
    acted = false;
  };
}

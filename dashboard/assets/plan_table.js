// The table of layers. A cell is a plain field of the browser, which loses no key, however busy the machine is;
// what was typed is sent until the page has taken it, and stands in the cell meanwhile.
const FIELDS = ["structure", "rank", "bits"];
const SEND_AFTER_MS = 150;

export default function ({ data, parentElement, setStateValue }) {
  const table = parentElement.querySelector("table");
  const own = (table.own ??= { pending: [], last: 0, timer: 0, cells: {} });
  own.data = data;
  own.set = setStateValue;
  own.pending = own.pending.filter(([stamp]) => stamp > data.taken);
  const names = data.rows.map((row) => row.layer).join("\n") + JSON.stringify(data.columns);
  if (own.names !== names) build(table, own, names);
  for (const row of data.rows) update(own, row);
  return () => send(own);
}

function build(table, own, names) {
  own.names = names;
  own.cells = {};
  const { columns, rows } = own.data;
  const head = table.tHead ?? table.createTHead();
  head.replaceChildren(make("tr", ...columns.map(({ key, label, help }) => {
    const cell = make("th", label);
    cell.className = key;
    cell.scope = "col";
    if (help) cell.title = help;
    return cell;
  })));
  const body = table.tBodies[0] ?? table.createTBody();
  body.replaceChildren(...rows.map(({ layer }) => {
    const cells = (own.cells[layer] = {});
    return make("tr", ...columns.map(({ key, label }) => {
      const cell = document.createElement(key === "layer" ? "th" : "td");
      cell.className = key;
      cells[key] = FIELDS.includes(key) ? cell.appendChild(field(own, layer, key, label)) : cell;
      return cell;
    }));
  }));
}

function make(kind, ...children) {
  const made = document.createElement(kind);
  made.append(...children);
  return made;
}

function field(own, layer, key, label) {
  const structure = key === "structure";
  const made = document.createElement(structure ? "select" : "input");
  if (structure) made.append(...own.data.structures.map(([value, text]) => new Option(text, value)));
  else Object.assign(made, { autocomplete: "off", spellcheck: false, onpaste: (event) => paste(own, layer, key, event) });
  made.setAttribute("aria-label", `${label}, ${layer}`);
  made.onfocus = () => !structure && made.select();
  made.onchange = () => commit(own, layer, key);
  made.onblur = (event) => {
    commit(own, layer, key);
    if (!own.cells[layer] || !made.closest("table").contains(event.relatedTarget)) send(own);
  };
  made.onkeydown = (event) => key_pressed(own, layer, key, event);
  return made;
}

function key_pressed(own, layer, key, event) {
  const cell = own.cells[layer][key];
  const changed = cell.value !== cell.known;
  if (event.key === "Escape") cell.value = cell.known;
  // Undo of the text while it is being typed is the browser's own.
  else if (event.key.toLowerCase() === "z" && (event.ctrlKey || event.metaKey) && changed) event.stopPropagation();
  else if (event.key === "Enter" || (cell.tagName === "INPUT" && ["ArrowDown", "ArrowUp"].includes(event.key))) {
    event.preventDefault();
    commit(own, layer, key);
    const up = event.key === "ArrowUp" || (event.key === "Enter" && event.shiftKey);
    const names = own.data.rows.map((row) => row.layer);
    own.cells[names[names.indexOf(layer) + (up ? -1 : 1)]]?.[key].focus();
  }
}

function paste(own, layer, key, event) {
  const lines = event.clipboardData.getData("text").replace(/\r?\n$/, "").split(/\r?\n/);
  if (lines.length < 2) return;
  event.preventDefault();
  const names = own.data.rows.map((row) => row.layer);
  lines.forEach((line, position) => {
    const name = names[names.indexOf(layer) + position];
    if (!name) return;
    own.cells[name][key].value = line.split("\t")[0].trim();
    commit(own, name, key);
  });
}

function commit(own, layer, key) {
  const cell = own.cells[layer]?.[key];
  if (!cell || cell.value === cell.known) return;
  cell.known = cell.value;
  own.last = Math.max(own.last, own.data.taken, Date.now()) + 1;
  own.pending.push([own.last, layer, key, cell.value]);
  clearTimeout(own.timer);
  own.timer = setTimeout(() => send(own), SEND_AFTER_MS);
}

function send(own) {
  clearTimeout(own.timer);
  if (own.pending.length && own.sent !== own.last) {
    own.sent = own.last;
    own.set("edits", [...own.pending]);
  }
}

function update(own, row) {
  const cells = own.cells[row.layer];
  for (const { key, share } of own.data.columns) {
    const cell = cells[key];
    if (FIELDS.includes(key)) {
      const waiting = own.pending.findLast(([, layer, column]) => layer === row.layer && column === key);
      const value = waiting ? waiting[3] : row[key];
      if (cell.value === (cell.known ?? cell.value)) cell.value = value; // else it is being typed into
      cell.known = value;
      cell.setAttribute("aria-invalid", row.problem);
    } else {
      const percent = typeof row[key] === "number" ? `${row[key].toFixed(1)} %` : row[key] ?? own.data.missing;
      const text = key === "layer" && row.edited ? `${own.data.mark} ${percent}` : percent;
      if (cell.textContent !== text) cell.textContent = text;
      if (share) cell.style.setProperty("--share", `${row[key]}%`);
      if (key === "check") cell.title = text;
    }
  }
}

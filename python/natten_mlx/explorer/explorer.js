// The page holds no window arithmetic: `windows` is src/definition/window.h, compiled to WebAssembly.

const FIELDS = [
  // name of the argument, label, value of a fresh axis
  ["length", "tokens", 12],
  ["kernel_size", "kernel_size", 5],
  ["dilation", "dilation", 1],
  ["stride", "stride", 1],
  ["gna_stride", "gna_stride", 1],
];
const FLAGS = [["is_causal", "is_causal"], ["is_circular", "is_circular"]];
const SPAN = [["query_start", "query_start", 0], ["rows", "rows", 0]]; // no rows: all of the axis
const MOST_TOKENS = [512, 64, 32]; // on an axis, by rank
const EXAMPLES = {
  "a window, shifted at borders": { shape: [11, 15], kernel_size: [5, 5] },
  "even and not square": { shape: [11, 15], kernel_size: [4, 7] },
  "dilation": { shape: [12, 16], kernel_size: [3, 3], dilation: [2, 4] },
  "causal in one axis": { shape: [11, 15], kernel_size: [5, 5], is_causal: [true, false] },
  "stride: fewer queries": { shape: [12, 16], kernel_size: [5, 5], stride: [2, 2] },
  "gna_stride: shared windows": { shape: [12, 16], kernel_size: [6, 6], gna_stride: [3, 4] },
  "blocked attention": { shape: [12, 16], kernel_size: [4, 4], gna_stride: [4, 4] },
  "circular axis": { shape: [10, 16], kernel_size: [5, 7], is_circular: [false, true] },
  "a span of queries": { shape: [11, 15], kernel_size: [5, 5], query_start: [4, 0], rows: [3, 15] },
  "decoding": { shape: [24], kernel_size: [6], dilation: [2], is_causal: [true], query_start: [23], rows: [1] },
  "sequence, causal": { shape: [24], kernel_size: [6], is_causal: [true] },
  "video": { shape: [6, 10, 14], kernel_size: [3, 5, 5], is_causal: [true, false, false] },
};

const find = (id) => document.getElementById(id);
let windows; // the module's exports
let axes = []; // one object of FIELDS and FLAGS for each axis
let tables = []; // per axis and token: {keys: Set, attending: Set, leader}
let held = null; // the token that was picked, an index per axis
let hovered = null;
let plane = 0;
let cells = [];

function freshAxis(given = {}) {
  const axis = {};
  for (const [name, , fresh] of [...FIELDS, ...SPAN]) axis[name] = given[name] ?? fresh;
  for (const [name] of FLAGS) axis[name] = given[name] ?? false;
  return axis;
}

/** Axes of an object of lists, such as {shape: [9, 16], kernel_size: [3, 5]}. */
function axesOf(lists) {
  return lists.shape.map((length, index) => {
    const given = { length };
    for (const name of Object.keys(lists)) if (name !== "shape") given[name] = lists[name][index];
    return freshAxis(given);
  });
}

function listed(count) {
  return [...new Int32Array(windows.memory.buffer, windows.list_address(), count)];
}

/** The windows of every token of an axis, or null if there is no such axis. */
function tableOf(axis) {
  const { length, kernel_size, stride, dilation, gna_stride, is_causal, is_circular } = axis;
  if (!windows.set_axis(length, kernel_size, stride, dilation, gna_stride, is_causal, is_circular)) return null;
  return Array.from({ length }, (_, token) => ({
    keys: new Set(listed(windows.keys(token))),
    attending: new Set(listed(windows.attending(token)).filter((query) => inSpan(axis, query))),
    leader: windows.leader(token),
    computed: token % stride === 0 && inSpan(axis, token),
  }));
}

const hasSpan = (axis) => axis.query_start > 0 || (axis.rows > 0 && axis.rows < axis.length);
const spanEnd = (axis) => (axis.rows > 0 ? axis.query_start + axis.rows : axis.length);
const inSpan = (axis, token) => token >= axis.query_start && token < spanEnd(axis);

/** The keys that the span's queries attend. */
function needed(axis, table) {
  const found = new Set();
  table.forEach((row) => { if (row.computed) row.keys.forEach((key) => found.add(key)); });
  return found;
}

/** Why there is no such axis, for the reader. The module decides whether. */
function explain(axis) {
  if (axis.is_causal && axis.is_circular) return "an axis can't be both causal and circular";
  if (!axis.is_causal && axis.kernel_size * axis.dilation > axis.length) return "kernel_size * dilation is more than the tokens";
  if (axis.stride > axis.kernel_size) return "stride is more than kernel_size";
  if (axis.gna_stride > axis.kernel_size) return "gna_stride is more than kernel_size";
  if (axis.stride > 1 && axis.gna_stride > 1) return "stride and gna_stride can't both be more than 1";
  if (axis.is_circular && axis.length % axis.dilation) return "dilation must divide the tokens of a circular axis";
  if (axis.is_circular) return "gna_stride must divide tokens / dilation of a circular axis";
  return "every value must be at least 1";
}

const shape = () => axes.map((axis) => axis.length);

function update() {
  const most = MOST_TOKENS[axes.length - 1];
  const problems = axes.flatMap((axis, index) => {
    if (axis.length > most) return [`axis ${index}: this page draws up to ${most} tokens here`];
    if (axis.query_start < 0 || axis.rows < 0 || spanEnd(axis) > axis.length || axis.query_start >= axis.length) {
      return [`axis ${index}: query_start + rows must lie inside of the axis`];
    }
    tables[index] = tableOf(axis);
    if (tables[index]) tables[index].needed = needed(axis, tables[index]);
    return tables[index] ? [] : [`axis ${index}: ${explain(axis)}`];
  });
  find("problem").textContent = problems.join("; ");
  find("view").hidden = find("code").hidden = problems.length > 0;
  if (problems.length) return;
  tables.length = axes.length;
  if (!held || held.length !== axes.length) {
    held = axes.map((axis) => Math.floor((axis.query_start + spanEnd(axis)) / 2));
  }
  held = held.map((index, axis) => {
    const inside = Math.min(index, spanEnd(axes[axis]) - 1);
    const computed = tables[axis].findLastIndex((row, token) => row.computed && token <= inside);
    return computed < 0 ? inside : computed;
  });
  hovered = null;
  plane = axes.length === 3 ? held[0] : 0;
  draw();
  find("call").textContent = call();
  remember();
}

function draw() {
  const [height, width] = axes.length === 1 ? [1, axes[0].length] : shape().slice(-2);
  const grid = find("grid");
  const gap = width > 40 ? 1 : 2;
  // One row of tokens may be wrapped by the reader's scrolling only: its order is the axis.
  const room = find("scroll").clientWidth - 8;
  const size = Math.max(14, Math.min(36, Math.floor(room / width) - gap));
  grid.style.setProperty("--size", `${size}px`);
  grid.style.gridTemplateColumns = `repeat(${width}, ${size}px)`;
  grid.style.gap = `${gap}px`;
  cells = Array.from({ length: height * width }, (_, index) => {
    const cell = document.createElement("i");
    cell.dataset.index = index;
    return cell;
  });
  grid.replaceChildren(...cells);
  find("planes").hidden = axes.length !== 3;
  if (axes.length === 3) find("plane").max = axes[0].length - 1;
  paint();
}

/** The token of a cell of the plane that is shown. */
function tokenOf(index) {
  const width = axes[axes.length - 1].length;
  return axes.length === 1 ? [index] : [plane, Math.floor(index / width), index % width].slice(-axes.length);
}

const every = (token, test) => token.every((index, axis) => test(tables[axis], index, axis));

function paint() {
  if (find("view").hidden) return; // there are no windows to show
  const query = hovered ?? held;
  const computed = every(query, (table, index) => table[index].computed);
  cells.forEach((cell, index) => {
    const token = tokenOf(index);
    const names = ["cell"];
    if (!every(token, (table, place) => table[place].computed)) names.push("skipped");
    if (axes.some(hasSpan) && every(token, (table, place) => table.needed.has(place))) names.push("needed");
    if (computed && every(token, (table, place, axis) => table[query[axis]].keys.has(place))) names.push("key");
    if (every(token, (table, place, axis) => table[query[axis]].attending.has(place))) names.push("attends");
    if (computed && axes.some((axis) => axis.gna_stride > 1) &&
        every(token, (table, place, axis) => table[query[axis]].leader === place)) names.push("leader");
    if (every(token, (_, place, axis) => place === query[axis])) names.push("query");
    cell.className = names.join(" ");
  });
  find("said").textContent = sentence(query, computed);
  if (axes.length === 3) {
    find("plane").value = plane;
    find("plane-label").textContent = `${plane} of 0 to ${axes[0].length - 1}`;
  }
}

const product = (sets) => sets.reduce((size, set) => size * set.size, 1);
const tuple = (values) => (values.length === 1 ? `${values[0]}` : `(${values.join(", ")})`);

/** 3 4 5 as 3 to 5, 0 2 4 as it is. */
function ranges(set) {
  const values = [...set].sort((a, b) => a - b);
  if (values.length > 2 && values.every((value, i) => value === values[0] + i)) return `${values[0]} to ${values.at(-1)}`;
  return values.join(" ");
}

function sentence(query, computed) {
  const at = query.map((index, axis) => tables[axis][index]);
  const name = `Token ${tuple(query)}`;
  const attended = `is attended by ${product(at.map((row) => row.attending))}`;
  if (!computed) return `${name} is not computed as a query; it ${attended}.`;
  const leader = at.map((row) => row.leader);
  const shared = axes.some((axis) => axis.gna_stride > 1) ? ` Its leader is ${tuple(leader)}.` : "";
  const perAxis = at.map((row, axis) => (axes.length > 1 ? `axis ${axis}: ` : "") + ranges(row.keys)).join("; ");
  const span = axes.some(hasSpan) ? ` The span needs the keys ${axes.map((axis, index) =>
    (axes.length > 1 ? `axis ${index}: ` : "") + ranges(tables[index].needed)).join("; ")}.` : "";
  return `${name} attends ${product(at.map((row) => row.keys))} keys (${perAxis}) and ${attended}.${shared}${span}`;
}

/** Python's spelling of an argument: one value where all axes agree. */
function python(values) {
  const words = values.map((value) => (value === true ? "True" : value === false ? "False" : String(value)));
  return words.every((word) => word === words[0]) ? words[0] : `(${words.join(", ")})`;
}

/** The names of arguments that are not what they are by default. */
function callArguments() {
  const args = [`kernel_size=${python(axes.map((axis) => axis.kernel_size))}`];
  for (const [name, , fresh] of [...FIELDS.slice(2), ...FLAGS.map(([flag]) => [flag, "", false])]) {
    const values = axes.map((axis) => axis[name]);
    if (values.some((value) => value !== fresh)) args.push(`${name}=${python(values)}`);
  }
  return args;
}

function call() {
  const args = callArguments();
  const tokens = axes.length === 1 ? "tokens" : "axes";
  if (axes.some(hasSpan)) return spanCall(args);
  return [
    "import mlx.core as mx",
    "import natten_mlx",
    "",
    `shape = (1, ${shape().join(", ")}, 4, 32)  # batch, ${tokens}, heads, head dim`,
    "query, key, value = (mx.random.normal(shape) for _ in range(3))",
    `out = natten_mlx.na${axes.length}d(query, key, value, ${args.join(", ")})`,
    "",
  ].join("\n");
}

/** Queries of a part of the axes, and the keys that they need. */
function spanCall(args) {
  const rows = axes.map((axis) => spanEnd(axis) - axis.query_start);
  const star = axes.length === 1 ? "" : "*";
  return [
    "import mlx.core as mx",
    "import natten_mlx",
    "",
    `shape, query_start, rows = ${tuple(shape())}, ${tuple(axes.map((axis) => axis.query_start))}, ${tuple(rows)}`,
    `window = dict(${args.join(", ")})`,
    "key_start, key_rows = natten_mlx.key_span(query_start=query_start, rows=rows, shape=shape, **window)",
    `query = mx.random.normal((1, ${star}rows, 4, 32))  # batch, rows, heads, head dim`,
    `key, value = (mx.random.normal((1, ${star}key_rows, 4, 32)) for _ in range(2))`,
    "span = dict(query_start=query_start, key_start=key_start, shape=shape)",
    `out = natten_mlx.na${axes.length}d(query, key, value, **window, **span)`,
    "",
  ].join("\n");
}

// ---- controls

function buildControls() {
  find("rank").value = axes.length;
  find("axes").replaceChildren(...axes.map((axis, index) => {
    const box = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = axes.length === 1 ? "the axis" : `axis ${index}`;
    const fields = document.createElement("div");
    fields.className = "fields";
    for (const [name, text] of [...FIELDS, ...SPAN, ...FLAGS]) {
      const label = document.createElement("label");
      const input = document.createElement("input");
      input.id = `${name}-${index}`;
      if (FLAGS.some(([flag]) => flag === name)) {
        label.className = "check";
        Object.assign(input, { type: "checkbox", checked: axis[name] });
        input.addEventListener("change", () => { axis[name] = input.checked; update(); });
        label.append(input, text);
      } else {
        const isSpan = SPAN.some(([field]) => field === name);
        Object.assign(input, { type: "number", min: isSpan ? 0 : 1, max: 512, inputMode: "numeric" });
        if (name === "rows") input.placeholder = "all";
        input.value = name === "rows" ? axis.rows || "" : axis[name];
        input.addEventListener("input", () => { axis[name] = Math.trunc(Number(input.value)); update(); });
        label.append(text, input);
      }
      fields.append(label);
    }
    box.append(legend, fields);
    return box;
  }));
}

function choose(lists) {
  axes = axesOf(lists);
  held = null;
  buildControls();
  update();
}

function setRank(rank) {
  while (axes.length > rank) axes.shift();
  while (axes.length < rank) axes.unshift(freshAxis({ length: 6, kernel_size: 3 }));
  held = null;
  buildControls();
  update();
}

/** The address says what is shown, so that it can be shared and survives a reload. */
function remember() {
  const lists = [["shape", shape()]];
  for (const [name] of [...FIELDS.slice(1), ...SPAN, ...FLAGS]) lists.push([name, axes.map((axis) => Number(axis[name]))]);
  history.replaceState(null, "", `#${lists.map(([name, values]) => `${name}=${values.join(",")}`).join("&")}`);
}

function fromAddress() {
  const lists = {};
  for (const [name, values] of new URLSearchParams(location.hash.slice(1))) {
    lists[name] = values.split(",").map(Number);
    if (FLAGS.some(([flag]) => flag === name)) lists[name] = lists[name].map(Boolean);
  }
  const rank = lists.shape?.length;
  return rank >= 1 && rank <= 3 && Object.values(lists).every((values) => values.length === rank) ? lists : null;
}

// ---- picking

function move(axis, step) {
  if (axis < 0) return;
  const from = held[axis];
  const to = Math.max(0, Math.min(axes[axis].length - 1, from + step));
  held[axis] = to;
  hovered = null;
  if (axes.length === 3) plane = held[0];
  paint();
}

function onKey(event) {
  const last = axes.length - 1;
  const steps = {
    ArrowLeft: [last, -1], ArrowRight: [last, 1],
    ArrowUp: [axes.length === 1 ? 0 : last - 1, -1], ArrowDown: [axes.length === 1 ? 0 : last - 1, 1],
    PageUp: [axes.length === 3 ? 0 : -1, -1], PageDown: [axes.length === 3 ? 0 : -1, 1],
    Home: [last, -axes[last].length], End: [last, axes[last].length],
  };
  if (event.key === "Escape") { hovered = null; paint(); return; }
  if (!steps[event.key]) return;
  event.preventDefault();
  move(...steps[event.key]);
}

function listen() {
  const grid = find("grid");
  const under = (event) => event.target.dataset?.index === undefined ? null : tokenOf(Number(event.target.dataset.index));
  grid.addEventListener("pointermove", (event) => {
    const token = event.pointerType === "touch" ? null : under(event);
    if (token && `${token}` !== `${hovered}`) { hovered = token; paint(); }
  });
  grid.addEventListener("pointerleave", () => { hovered = null; paint(); });
  grid.addEventListener("click", (event) => {
    const token = under(event);
    if (token) { held = token; hovered = null; paint(); }
  });
  grid.addEventListener("keydown", onKey);
  find("plane").addEventListener("input", (event) => { plane = Number(event.target.value); hovered = null; paint(); });
  find("rank").addEventListener("change", (event) => setRank(Number(event.target.value)));
  find("example").replaceChildren(new Option("...", ""), ...Object.keys(EXAMPLES).map((name) => new Option(name)));
  find("example").addEventListener("change", (event) => {
    if (event.target.value) choose(EXAMPLES[event.target.value]);
  });
  find("reset").addEventListener("click", () => { find("example").value = ""; choose(INITIAL); });
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("copy").addEventListener("click", copy);
  window.addEventListener("resize", () => { if (!find("view").hidden) draw(); });
}

async function copy() {
  const text = find("call").textContent;
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // a page from a file may not use the clipboard: select, for the reader's own copy
    getSelection().selectAllChildren(find("call"));
    done = document.execCommand("copy");
  }
  find("copy").textContent = done ? "Copied" : "Selected";
  setTimeout(() => { find("copy").textContent = "Copy"; }, 1500);
}

/** In a frame of the documentation: its choice of light or dark. */
function followTheme() {
  let body;
  try { body = window.parent !== window && window.parent.document.body; } catch { return; }
  if (!body) return;
  document.documentElement.dataset.framed = "yes";
  const follow = () => {
    document.documentElement.dataset.theme = body.dataset.mdColorScheme === "slate" ? "dark" : "light";
  };
  new MutationObserver(follow).observe(body, { attributeFilter: ["data-md-color-scheme"] });
  follow();
}

async function start() {
  followTheme();
  const bytes = Uint8Array.from(atob(WASM), (letter) => letter.charCodeAt(0));
  windows = (await WebAssembly.instantiate(bytes)).instance.exports;
  listen();
  choose(fromAddress() ?? INITIAL);
  document.documentElement.dataset.ready = "yes";
}

start();

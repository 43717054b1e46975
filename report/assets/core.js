const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const make = (name, text, kind) => Object.assign(document.createElement(name), { textContent: text || "", className: kind || "" });
// In these parts no line ends within a name, `report.markup.kept`.
const kept = (text) => text.split(/((?=\S*\p{L})\S*[\p{L}\p{N}_][-#@/_][\p{L}\p{N}_]\S*)/u).map((part, k) => (k % 2 ? make("span", part, "kept") : part));
const keptIn = (name, text) => { const parent = make(name); parent.append(...kept(text)); return parent; };
const colours = {}; // model -> colour, read from the chips
const hiddenModels = new Set();
const shownModel = (cell) => !hiddenModels.has(page.cells[cell].model);

for (const row of Object.values(page.cells)) row.marked = row.label + row.marks;
const ids = Object.keys(page.cells), named = (places) => places.map((place) => ids[place]);
page.unranked = named(page.unranked);
for (const level of Object.keys(page.affordable)) page.affordable[level] = named(page.affordable[level]);
for (const metric of Object.values(page.metrics)) metric.order = named(metric.order);
for (const metric of Object.values(page.metrics)) metric.places = Object.fromEntries(metric.order.slice(0, metric.count).map((cell, k) => [cell, k]));

// ---- figures: theme, drawing, redrawing -------------------------------------------------------------------

const PRINTED = { "--ink": "#000", "--soft": "#444", "--line": "#bbb", "--wash": "#fff", "--accent": "#0067a3" };
let printing = false;

function themed(layout) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => (printing ? PRINTED[name] : style.getPropertyValue(name).trim());
  const narrow = window.innerWidth < 640;
  layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
  layout.font = { color: colour("--ink"), family: getComputedStyle(document.body).fontFamily, size: narrow ? 11 : 13 };
  layout.hoverlabel = { bgcolor: colour("--wash"), bordercolor: colour("--line"), font: { color: colour("--ink") }, align: "left" };
  for (const axis of [layout.xaxis, layout.yaxis]) {
    axis.gridcolor = axis.zerolinecolor = colour("--line");
    axis.linecolor = axis.tickcolor = colour("--soft");
    axis.title.font = { size: narrow ? 11 : 13 };
  }
  layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: colour("--accent") };
  return layout;
}

// Plotly writes 0.5 as "5" on a log axis; these ticks are whole numbers: powers of two for counts, else 1-2-5.
function logTicks(axis, values) {
  const known = values.filter((value) => value > 0);
  const low = Math.min(...known) / 1.1, high = Math.max(...known) * 1.1;
  const series = (digits) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) {
      for (const digit of digits) ticks.push(Number((digit * 10 ** power).toPrecision(3)));
    }
    return ticks.filter((tick) => tick >= low && tick <= high);
  };
  const doubled = Array.from({ length: 21 }, (_, power) => 2 ** power).filter((tick) => tick >= low && tick <= high);
  const sparse = series([1, 2, 5]);
  const counts = known.every(Number.isInteger);
  axis.tickvals = counts && doubled.length > (low < high / 1.3 ? 1 : 0) ? doubled : sparse.length > 2 ? sparse : series([1, 1.5, 2, 3, 4, 5, 6, 8]);
  axis.ticktext = axis.tickvals.map(String);
}

function setTicks(figure) {
  for (const letter of ["x", "y"]) {
    const axis = figure.layout[`${letter}axis`];
    if (axis.type === "log") logTicks(axis, figure.data.flatMap((trace) => trace[letter]));
    else if (axis.wasLog) { delete axis.tickvals; delete axis.ticktext; }
    axis.wasLog = axis.type === "log";
  }
}

const place = (name) => document.querySelector(`[data-figure="${name}"] .plot`);

function draw(name) {
  const figure = page.figures[name];
  for (const trace of figure.data) trace.visible = !(trace.meta && hiddenModels.has(trace.meta.model));
  const config = { ...page.config };
  if (window.innerWidth < 640) config.displayModeBar = false;
  setTicks(figure);
  place(name).style.height = `${figure.layout.height}px`;
  return Plotly.react(place(name), figure.data, themed(figure.layout), config);
}

const drawAll = () => Promise.all(Object.keys(page.figures).map(draw));
const metricOf = (cell, key) => page.cells[cell].metrics[key] || [null, null, null, null, null, "–", "", "–"];
const better = (key) => (page.metrics[key].higher ? 1 : -1);
const axisTitle = (key) => `${page.metrics[key].short} (${page.metrics[key].higher ? "higher" : "lower"} is better)`;
const literal = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function bars(trace, axis, cells, key) {
  const values = cells.map((cell) => metricOf(cell, key));
  trace[axis] = values.map((value) => value[0]);
  const error = trace[`error_${axis}`];
  if (!error) return;
  error.array = values.map(([value, , high]) => (high === null ? null : high - value));
  error.arrayminus = values.map(([value, low]) => (low === null ? null : value - low));
}

// A metric with a largest value stays on a linear axis: one bad row must not squeeze the others into a line.
function fitScale(axis, traces, letter, key) {
  const values = traces.filter((trace) => trace.visible !== false)
    .flatMap((trace) => trace[letter].filter((value, k) => value !== null && trace.x[k] !== null)); // those that are drawn
  const low = Math.min(...values), high = Math.max(...values);
  axis.type = !page.metrics[key].bounded && low > 0 && high / low > 5 ? "log" : "linear";
}

function hover(trace, cells, keys, extra) {
  trace.hovertext = cells.map((cell) => {
    const row = page.cells[cell];
    const lines = [literal(row.marked)];
    if (row.nfe !== null) lines.push(`${row.nfe} NFE`);
    for (const key of keys) lines.push(`${page.metrics[key].short} ${metricOf(cell, key)[5]} ${metricOf(cell, key)[6]}`);
    if (extra && row[extra] !== null) lines.push(seconds(row[extra]));
    if (row.off_regime) lines.push("outside the step counts it was trained for");
    return lines.join("<br>");
  });
}

function seconds(value) {
  if (value === null) return "–";
  for (const [factor, unit] of [[1, "s"], [1e3, "ms"], [1e6, "µs"]]) if (value * factor >= 1) return `${Number((value * factor).toPrecision(3))} ${unit}`;
  return `${Number((value * 1e9).toPrecision(3))} ns`;
}

const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

function listed(names, most = 3) {
  if (names.length > most) return `${names.slice(0, most).join(", ")} and ${names.length - most} more`;
  return names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names[names.length - 1]}` : names.join("");
}

const valueText = (cell, key) => `${metricOf(cell, key)[5]} ${metricOf(cell, key)[6]}`.trim().replaceAll(" ", "\u00a0");

// ---- the best of any choice of rows and those tied with it, as `results.picks` says -------------------------

function bestFirst(cells, key) {
  const value = (cell) => -better(key) * metricOf(cell, key)[0];
  return cells.filter((cell) => !page.cells[cell].random_weights && metricOf(cell, key)[0] !== null && page.metrics[key].places[cell] !== undefined)
    .sort((a, b) => value(a) - value(b) || page.metrics[key].places[a] - page.metrics[key].places[b]);
}

// `beaten[key]` holds a row of bits for each cell of `page.compared`: who is significantly better than it.
const comparedAt = new Map(page.compared.map((cell, k) => [cell, k]));
function beats(one, other, key) {
  const row = page.beaten[key], from = comparedAt.get(one), to = comparedAt.get(other);
  if (!row || from === undefined || to === undefined) return false;
  return (parseInt(row[to][from >> 2], 16) >> (from & 3) & 1) === 1;
}

function pick(cells, key) {
  const order = bestFirst(cells, key), equal = (cell) => metricOf(cell, key)[0] === metricOf(order[0], key)[0];
  const level = (cell) => comparedAt.has(cell) && !order.some((other) => beats(other, cell, key));
  const tied = order.slice(1).filter(key in page.beaten ? level : equal); // a composite without intervals: no more is known
  return order.length ? { best: order[0], tied } : null;
}


const AXES = {
  nfe: "network evaluations per image (NFE)", steps: "sampler steps", seconds: "seconds per image",
  latency_seconds: "seconds for one image, batch 1",
};
const COST = { nfe: "evaluations" }; // a budget of evaluations counts those of a guide network too

const costOf = (cell, cost) => page.cells[cell][COST[cost] || cost];

// `results.leaderboard.within_budget`: of a time, the whole interval must be within.
function within(cell, cost, most) {
  const price = costOf(cell, cost);
  if (price === null) return false;
  return cost === "nfe" ? price <= most + page.rounding : (page.cells[cell].prices[cost][1] ?? price) <= most;
}
const heading = (section, text) => { document.querySelector(`#${section} h2`).replaceChildren(...kept(text)); };
const cost_text = { nfe: (value) => `${Number(value.toPrecision(6))} NFE`, steps: (value) => plural(value, "step"), seconds, latency_seconds: seconds };

function updateCurve() {
  const metric = byId("curve-metric").value, axis = byId("curve-axis").value;
  const { data, layout } = page.figures.curve;
  for (const trace of data) {
    trace.x = trace.meta.cells.map((cell) => page.cells[cell][axis]);
    bars(trace, "y", trace.meta.cells, metric);
    hover(trace, trace.meta.cells, [metric], axis === "seconds" ? axis : null);
    trace.visible = !hiddenModels.has(trace.meta.model);
  }
  layout.xaxis.title.text = AXES[axis];
  layout.yaxis.title.text = axisTitle(metric);
  fitScale(layout.yaxis, data, "y", metric);
  draw("curve");
  heading("curve", curveFinding(data.flatMap((trace) => trace.meta.cells).filter(shownModel), metric, axis));
}

function curveFinding(cells, metric, axis) {
  const short = page.metrics[metric].short;
  const known = bestFirst(cells, metric).filter((cell) => page.cells[cell][axis] !== null);
  if (!known.length) return `${short} against cost: no model is shown`;
  const costs = known.map((cell) => page.cells[cell][axis]);
  const [low, high] = [Math.min(...costs), Math.max(...costs)];
  const [first, last] = [low, high].map((end) => known.find((cell) => page.cells[cell][axis] === end));
  const say = (cell) => `${valueText(cell, metric)} (${page.cells[cell].model})`;
  if (axis === "seconds") return `The fastest row (${seconds(low)}) has ${short} ${say(first)}, the best ${say(known[0])} takes ${seconds(page.cells[known[0]][axis])}`;
  if (first === last) return `${short} against cost`;
  return `At ${cost_text[axis](low)} the best ${short} is ${say(first)}, at ${cost_text[axis](high)} ${say(last)}`;
}

function paretoFront(cells, metric, cost) {
  const priced = cells.filter((cell) => costOf(cell, cost) !== null && metricOf(cell, metric)[0] !== null)
    .map((cell) => [costOf(cell, cost), -better(metric) * metricOf(cell, metric)[0], cell])
    .sort((one, other) => one[0] - other[0] || one[1] - other[1]);
  let best = Infinity;
  return priced.filter(([, loss]) => loss < best && ((best = loss), true)).map(([, , cell]) => cell);
}

// `results.budgets.unsure_of_front`: each better row must surely cost more, by the intervals of their times.
function sureOfFront(cell, among, metric, cost) {
  const value = (one) => better(metric) * metricOf(one, metric)[0], [, high] = page.cells[cell].prices[cost];
  const better_rows = among.filter((other) => value(other) > value(cell)).map((other) => page.cells[other].prices[cost][0]);
  return better_rows.every((low) => high !== null && low !== null && high < low);
}

function updatePareto() {
  const metric = byId("pareto-metric").value, cost = byId("pareto-axis").value;
  const { data, layout } = page.figures.pareto;
  const alike = (cell) => cost === "nfe" || page.cells[cell].device === page.device; // times of one device only
  const among = data.slice(1).flatMap((trace) => trace.meta.cells).filter((cell) => shownModel(cell) && alike(cell));
  const front = paretoFront(among, metric, cost);
  const onFront = new Set(front);
  Object.assign(data[0], { x: front.map((cell) => costOf(cell, cost)), y: front.map((cell) => metricOf(cell, metric)[0]) });
  for (const trace of data.slice(1)) {
    const cells = trace.meta.cells;
    trace.x = cells.map((cell) => (alike(cell) ? costOf(cell, cost) : null));
    bars(trace, "y", cells, metric);
    trace.text = cells.map((cell) => (onFront.has(cell) && page.cells[cell].steps !== null ? `${page.cells[cell].steps}` : ""));
    trace.textposition = cells.map((cell) => (front.indexOf(cell) % 2 === 1 ? "bottom center" : "top center"));
    trace.marker.size = cells.map((cell) => (onFront.has(cell) ? 12 : 8));
    trace.marker.opacity = cells.map((cell) => (onFront.has(cell) ? 1 : 0.35));
    hover(trace, cells, [metric], cost === "nfe" ? null : cost);
    trace.visible = !hiddenModels.has(trace.meta.model);
  }
  layout.xaxis.title.text = AXES[cost];
  layout.yaxis.title.text = axisTitle(metric);
  fitScale(layout.yaxis, data.slice(1), "y", metric);
  draw("pareto");
  const priced = among.filter((cell) => costOf(cell, cost) !== null && metricOf(cell, metric)[0] !== null);
  const say = (cell) => `${page.cells[cell].label} (${cost_text[cost](costOf(cell, cost))})`;
  const short = page.metrics[metric].short;
  const unsure = cost === "nfe" ? 0 : front.filter((cell) => !sureOfFront(cell, priced, metric, cost)).length;
  if (!front.length) heading("pareto", "No row is shown");
  else if (unsure) heading("pareto", `Up to ${front.length} of ${plural(priced.length, "row")} are on the Pareto front of ${short}: the times of ${unsure} are not told apart from a better row's`);
  else if (front.length === 1) heading("pareto", `One row is both the cheapest and the best by ${short}: ${say(front[0])}`);
  else heading("pareto", `${front.length} of ${plural(priced.length, "row")} are on the Pareto front of ${short}, from ${say(front[0])} to ${say(front[front.length - 1])}`);
}

function updateGuidance() {
  const across = byId("guidance-axis").value;
  const { data, layout } = page.figures.guidance;
  for (const trace of data) {
    bars(trace, "x", trace.meta.cells, across);
    hover(trace, trace.meta.cells, [page.distance, across]);
  }
  layout.xaxis.title.text = axisTitle(across);
  draw("guidance");
}

function updateClasses() {
  const metric = byId("class-metric").value, one = byId("class-one").value, other = byId("class-other").value;
  const { data: [trace], layout } = page.figures.classes;
  const [first, firstHalves] = page.classes.values[metric][one] || [[], []];
  const [second, secondHalves] = page.classes.values[metric][other] || [[], []];
  const share = firstHalves.length > 0; // half widths of two rows add in squares, `results.statistics.share_half_width`
  const rows = page.classes.names
    .map((name, k) => ({ name, a: first[k], b: second[k], half: share ? Math.hypot(firstHalves[k], secondHalves[k]) : 0 }))
    .filter((row) => Number.isFinite(row.a) && Number.isFinite(row.b))
    .sort((x, y) => x.a - x.b - (y.a - y.b));
  const apart = rows.map((row) => Math.abs(row.a - row.b) > row.half);
  trace.x = rows.map((row) => row.a - row.b);
  trace.y = rows.map((_, k) => k);
  trace.marker.symbol = apart.map((surely) => (surely ? "circle" : "circle-open"));
  trace.hovertext = rows.map((row) => `${literal(row.name)}<br>${Number(row.a.toPrecision(3))} against ${Number(row.b.toPrecision(3))}`);
  trace.error_x = share ? { type: "data", array: rows.map((row) => row.half), width: 0, thickness: 1, color: "rgba(128,128,128,0.5)" } : { visible: false };
  layout.xaxis.title.text = `${page.metrics[metric].short}, first minus second<br>(${page.metrics[metric].higher ? "right" : "left"} of zero: the first is better)`;
  const few = rows.length <= 60;
  layout.yaxis.tickvals = few ? trace.y : [];
  layout.yaxis.ticktext = few ? rows.map((row) => literal(row.name)) : [];
  draw("classes");
  const ahead = rows.filter((row, k) => apart[k] && better(metric) * (row.a - row.b) > 0).length;
  const behind = apart.filter(Boolean).length - ahead;
  const [short, names] = [page.metrics[metric].short, [one, other].map((cell) => page.cells[cell].label)];
  const sure = share ? "significantly " : "";
  if (!ahead && !behind) heading("classes", `By ${short}, no class ${share ? "significantly " : ""}sets ${names[0]} and ${names[1]} apart`);
  else heading("classes", `By ${short}, ${names[0]} is ${sure}ahead of ${names[1]} in ${ahead} of ${plural(rows.length, "class").replace("classs", "classes")} and ${sure}behind in ${behind}`);
}

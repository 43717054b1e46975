"use strict";
(() => {
  const page = JSON.parse(document.getElementById("page-data").textContent);
  const byId = (id) => document.getElementById(id);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const colours = {}; // model -> colour, read from the chips
  const hiddenModels = new Set();

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
    axis.tickvals = counts ? doubled : sparse.length > 2 ? sparse : series([1, 1.5, 2, 3, 4, 5, 6, 8]);
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
    const config = { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] };
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

  function fitScale(axis, traces, letter) {
    const values = traces.flatMap((trace) => trace[letter]).filter((value) => value !== null);
    const low = Math.min(...values), high = Math.max(...values);
    axis.type = low > 0 && high / low > 5 ? "log" : "linear";
  }

  function hover(trace, cells, keys, extra) {
    trace.hovertext = cells.map((cell) => {
      const row = page.cells[cell];
      const lines = [literal(row.label)];
      if (row.nfe !== null) lines.push(`${row.nfe} NFE`);
      for (const key of keys) lines.push(`${page.metrics[key].short} ${metricOf(cell, key)[5]} ${metricOf(cell, key)[6]}`);
      if (extra && row[extra] !== null) lines.push(`${row[extra].toPrecision(3)} s`);
      if (row.off_regime) lines.push("outside the step counts it was trained for");
      return lines.join("<br>");
    });
  }

  const AXES = {
    nfe: "network evaluations per image (NFE)", steps: "sampler steps", seconds: "seconds per image",
    latency_seconds: "seconds for one image, batch 1",
  };

  function updateCurve() {
    const metric = byId("curve-metric").value, axis = byId("curve-axis").value;
    const { data, layout } = page.figures.curve;
    for (const trace of data) {
      trace.x = trace.meta.cells.map((cell) => page.cells[cell][axis]);
      bars(trace, "y", trace.meta.cells, metric);
      hover(trace, trace.meta.cells, [metric], axis === "seconds" ? axis : null);
    }
    layout.xaxis.title.text = AXES[axis];
    layout.yaxis.title.text = axisTitle(metric);
    fitScale(layout.yaxis, data, "y");
    draw("curve");
  }

  function updatePareto() {
    const metric = byId("pareto-metric").value, cost = byId("pareto-axis").value;
    const { data, layout } = page.figures.pareto;
    const front = page.fronts[metric][cost];
    const onFront = new Set(front);
    Object.assign(data[0], { x: front.map((cell) => page.cells[cell][cost]), y: front.map((cell) => metricOf(cell, metric)[0]) });
    for (const trace of data.slice(1)) {
      const cells = trace.meta.cells;
      trace.x = cells.map((cell) => page.cells[cell][cost]);
      bars(trace, "y", cells, metric);
      trace.text = cells.map((cell) => (onFront.has(cell) && page.cells[cell].steps !== null ? `${page.cells[cell].steps}` : ""));
      trace.textposition = cells.map((cell) => (front.indexOf(cell) % 2 === 1 ? "bottom center" : "top center"));
      trace.marker.size = cells.map((cell) => (onFront.has(cell) ? 12 : 8));
      trace.marker.opacity = cells.map((cell) => (onFront.has(cell) ? 1 : 0.35));
      hover(trace, cells, [metric], cost);
    }
    layout.xaxis.title.text = AXES[cost];
    layout.yaxis.title.text = axisTitle(metric);
    fitScale(layout.yaxis, data.slice(1), "y");
    draw("pareto");
  }

  function updateGuidance() {
    const across = byId("guidance-axis").value;
    const { data, layout } = page.figures.guidance;
    for (const trace of data) {
      bars(trace, "x", trace.meta.cells, across);
      hover(trace, trace.meta.cells, [page.metrics.fid ? "fid" : page.headline, across]);
    }
    layout.xaxis.title.text = axisTitle(across);
    draw("guidance");
  }

  function updateClasses() {
    const metric = byId("class-metric").value, one = byId("class-one").value, other = byId("class-other").value;
    const { data: [trace], layout } = page.figures.classes;
    const [first, firstHalves] = page.classes.values[metric][one] || [[], []];
    const [second, secondHalves] = page.classes.values[metric][other] || [[], []];
    const rows = page.classes.names
      .map((name, k) => ({ name, a: first[k], b: second[k], half: Math.hypot(firstHalves[k], secondHalves[k]) }))
      .filter((row) => Number.isFinite(row.a) && Number.isFinite(row.b))
      .sort((x, y) => x.a - x.b - (y.a - y.b));
    trace.x = rows.map((row) => row.a - row.b);
    trace.y = rows.map((_, k) => k);
    trace.marker.color = rows.map((row) => (row.a >= row.b ? "#0072B2" : "#D55E00"));
    trace.hovertext = rows.map((row) => `${literal(row.name)}<br>${row.a.toPrecision(3)} against ${row.b.toPrecision(3)}`);
    const share = firstHalves.length > 0; // half widths of two rows add in squares, `results.statistics.share_half_width`
    trace.error_x = share ? { type: "data", array: rows.map((row) => row.half), width: 0, thickness: 1, color: "rgba(128,128,128,0.5)" } : { visible: false };
    layout.xaxis.title.text = `${page.metrics[metric].short}, first minus second`;
    const few = rows.length <= 60;
    layout.yaxis.tickvals = few ? trace.y : [];
    layout.yaxis.ticktext = few ? rows.map((row) => literal(row.name)) : [];
    draw("classes");
    const ahead = rows.filter((row) => better(metric) * (row.a - row.b) > 0).length;
    const heading = document.querySelector("#classes h2");
    heading.textContent = `By ${page.metrics[metric].short}, ${page.cells[one].label} is ahead of ${page.cells[other].label} in ${ahead} of ${rows.length} classes`;
  }

  // ---- leaderboard: sort, best setting of each model, filter, budgets ---------------------------------------

  const board = byId("leaderboard");
  const bodies = [...board.tBodies];
  const sort = { key: "rank", direction: 1, ranking: page.headline };

  // Every cell in the order that results gives them by what is ranked by; those without a value come last.
  const ranking = () => (page.headline ? page.metrics[sort.ranking].order : page.unranked);

  function sortValue(cell) {
    const row = page.cells[cell];
    if (sort.key === "rank") return metricOf(cell, sort.ranking)[0] === null ? null : ranking().indexOf(cell);
    if (sort.key in page.metrics) return metricOf(cell, sort.key)[0];
    return row[sort.key];
  }

  function visible(cell) {
    const row = page.cells[cell];
    const limit = byId("budget").value, wanted = byId("filter").value.trim().toLowerCase();
    const withinBudget = !limit || page.affordable[limit].includes(cell);
    return withinBudget && [row.label, row.family, row.checkpoint].join(" ").toLowerCase().includes(wanted);
  }

  function bestOfEach(cells) {
    const best = new Map(), among = new Set(cells);
    for (const cell of ranking()) if (among.has(cell) && !best.has(page.cells[cell].model)) best.set(page.cells[cell].model, cell);
    return new Set(best.values());
  }

  function updateBoard() {
    const cells = bodies.map((body) => body.dataset.cell).filter(visible);
    const shown = byId("view-best").checked ? bestOfEach(cells) : new Set(cells);
    const count = page.headline ? page.metrics[sort.ranking].count : 0;
    const leaders = new Set(page.headline ? page.metrics[sort.ranking].leaders : []);
    for (const body of bodies) {
      const [, , , low, high, , , place] = metricOf(body.dataset.cell, sort.ranking);
      body.style.display = shown.has(body.dataset.cell) ? "table-row-group" : "none";
      body.classList.toggle("tied", leaders.has(body.dataset.cell));
      body.querySelector(".place").textContent = place;
      const bar = body.querySelector(".bar"), mark = bar.firstElementChild;
      bar.hidden = low === null;
      if (low !== null) Object.assign(mark.style, { left: `${(100 * (low - 1)) / count}%`, width: `${(100 * (high - low + 1)) / count}%` });
    }
    const order = [...bodies].sort((a, b) => {
      const one = sortValue(a.dataset.cell), other = sortValue(b.dataset.cell);
      if (one === null || other === null) return (one === null) - (other === null);
      return sort.direction * (typeof one === "string" ? one.localeCompare(other) : one - other);
    });
    board.append(...order);
    for (const heading of all("th[data-key]", board)) {
      if (heading.dataset.key === sort.key) heading.setAttribute("aria-sort", sort.direction > 0 ? "ascending" : "descending");
      else heading.removeAttribute("aria-sort");
    }
    const note = byId("rank-note");
    if (note) note.textContent = `95% rank sets by ${page.metrics[sort.ranking].short} among ${count} rows`;
    updateBudgets();
  }

  function updateBudgets() {
    const strip = byId("budgets");
    if (!strip) return;
    const cost = byId("strip-cost").value;
    const { title, levels } = page.budgets[sort.ranking][cost];
    const make = (name, text, kind) => Object.assign(document.createElement(name), { textContent: text, className: kind || "" });
    strip.replaceChildren(...levels.map(([level, winner, tied]) => {
      const row = page.cells[winner], value = metricOf(winner, sort.ranking), item = document.createElement("li");
      item.style.setProperty("--model", colours[row.model]);
      const steps = row.label.slice(row.model.length).replace(/^( at|,) /, "");
      item.append(make("span", `≤ ${level}`, "level"), make("b", row.model), make("small", steps),
        make("span", `${page.metrics[sort.ranking].short} ${value[5]} ${value[6]}`), make("small", tied ? `tied: ${tied}` : "no tie"));
      return item;
    }));
    byId("budget-title").textContent = title;
  }

  function sortBy(key) {
    if (key in page.metrics) sort.ranking = key;
    if (key === sort.key) sort.direction = -sort.direction;
    else if (key in page.metrics) sort.direction = -better(key);
    else sort.direction = key === "images_per_second" ? -1 : 1;
    sort.key = key;
    updateBoard();
    saveState();
  }

  // ---- state in the address, so that a link reproduces a view ------------------------------------------------

  function saveState() {
    const state = new URLSearchParams();
    for (const control of all("[data-state]")) {
      if (control.type === "radio") { if (control.checked && control.id !== "view-best") state.set("view", control.id); }
      else if (control.value && control.value !== control.dataset.initial) state.set(control.id, control.value);
    }
    if (sort.key !== "rank") state.set("sort", `${sort.key}:${sort.direction}`);
    const text = state.toString();
    history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
  }

  function loadState() {
    for (const control of all("[data-state]")) control.dataset.initial = control.value;
    const state = new URLSearchParams(location.hash.slice(1));
    for (const [key, value] of state) {
      const control = byId(key === "view" ? value : key);
      if (key === "sort") {
        const [name, direction] = value.split(":");
        if (!all("th[data-key]", board).some((heading) => heading.dataset.key === name)) continue;
        sort.key = name;
        sort.direction = Number(direction) < 0 ? -1 : 1;
        if (name in page.metrics) sort.ranking = name;
      } else if (control && "state" in control.dataset) {
        if (control.type === "radio") control.checked = true;
        else if (!control.options || [...control.options].some((option) => option.value === value)) control.value = value;
      }
    }
  }

  function showGrid() {
    const chosen = byId("grid-steps").value;
    for (const grid of all("[data-grid]")) grid.hidden = grid.dataset.grid !== chosen;
  }

  // ---- wiring ------------------------------------------------------------------------------------------------

  const updates = {
    curve: updateCurve, pareto: updatePareto, guidance: updateGuidance, class: updateClasses, grid: showGrid,
    view: updateBoard, strip: updateBudgets, budget: updateBoard, filter: updateBoard,
  };
  for (const chip of all(".chips button")) {
    colours[chip.dataset.model] = chip.querySelector(".dot").style.backgroundColor;
    chip.addEventListener("click", () => {
      const model = chip.dataset.model, hide = !hiddenModels.has(model);
      if (hide) hiddenModels.add(model); else hiddenModels.delete(model);
      chip.setAttribute("aria-pressed", String(!hide));
      for (const name of Object.keys(page.figures)) if (page.figures[name].data.some((trace) => trace.meta)) draw(name);
    });
  }
  for (const heading of all("th[data-key]", board)) heading.querySelector("button").addEventListener("click", () => sortBy(heading.dataset.key));
  loadState();
  for (const control of all("[data-state]")) {
    const update = updates[control.id.split("-")[0]];
    control.addEventListener("input", () => { update(); saveState(); });
    if (control.type !== "radio" && control.value !== control.dataset.initial) update();
  }
  board.classList.add("scripted");
  updateBoard();
  drawAll().then(() => { document.documentElement.dataset.drawn = "true"; });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  for (const [event, on] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => { printing = on; drawAll(); });
  }
})();

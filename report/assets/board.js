
// ---- leaderboard: sort, best setting of each model, filter, budgets ---------------------------------------

const board = byId("leaderboard");
const bodies = new Map([...board.tBodies].map((body) => [body.dataset.cell, body]));
const sort = { key: "rank", direction: 1, ranking: page.headline };
const WINDOW = 200; // rows in the document at first; more follow as they are scrolled to
let limit = WINDOW;

// Every cell in the order that results gives them by what is ranked by; those without a value come last.
const ranking = () => (page.headline ? page.metrics[sort.ranking].order : page.unranked);

function sortValue(cell, at) {
  const row = page.cells[cell];
  if (sort.key === "rank") return metricOf(cell, sort.ranking)[0] === null ? null : at.get(cell);
  if (sort.key in page.beaten) return metricOf(cell, sort.key)[0];
  return row[sort.key];
}

const wanted = () => byId("filter").value.trim().toLowerCase();
const matches = (cell, words) => {
  const row = page.cells[cell];
  return [row.label, row.family, row.checkpoint].join(" ").toLowerCase().includes(words);
};
const filtered = () => { const words = wanted(); return Object.keys(page.cells).filter((cell) => matches(cell, words)); };

function visible() {
  const most = byId("budget").value, affordable = most && new Set(page.affordable[most]);
  return filtered().filter((cell) => !most || affordable.has(cell));
}

function bestOfEach(cells) {
  const best = new Map(), among = new Set(cells);
  for (const cell of ranking()) if (among.has(cell) && !best.has(page.cells[cell].model)) best.set(page.cells[cell].model, cell);
  return new Set(best.values());
}

// A row that the file does not carry as HTML: of thousands of rows only the first few hundred do.
function makeBody(cell) {
  const row = page.cells[cell], body = document.createElement("tbody"), line = body.insertRow();
  body.dataset.cell = cell;
  line.className = "line";
  const open = Object.assign(document.createElement("input"), { type: "checkbox", className: "open", ariaLabel: `show the settings of ${row.label}` });
  line.insertCell().append(open);
  const rank = line.insertCell(), bar = make("span", "", "bar");
  rank.className = "rank";
  bar.append(make("i"));
  rank.append(make("span", "", "place"), bar);
  const name = make("th"), dot = make("span", "", "dot");
  name.scope = "row";
  dot.style.background = colours[row.model];
  name.append(dot, row.model);
  if (row.badges) name.append(make("small", row.badges));
  line.append(name);
  for (const [key, kind] of page.columns) {
    const place = line.insertCell();
    if (kind === "metric") {
      const [, , , , , amount, error, , marks = "", tips = ""] = metricOf(cell, key);
      place.append(amount + marks, make("small", error));
      if (tips) place.title = tips;
      continue;
    }
    const value = row[key];
    place.textContent = value === null ? "–" : kind === "seconds" ? seconds(value) : kind === "plain" ? `${value}` : Number(value.toPrecision(3)).toLocaleString("en");
    if (row.spreads?.[key]) place.append(make("small", row.spreads[key]));
  }
  const more = body.insertRow(), details = more.insertCell();
  more.className = "more";
  details.colSpan = line.children.length;
  details.append(make("p", `cell ${cell}; to repeat this row:`), Object.assign(make("pre", row.command || `bench show ${cell}`), { tabIndex: 0 }));
  return body;
}

function bodyOf(cell) {
  if (!bodies.has(cell)) bodies.set(cell, makeBody(cell));
  return bodies.get(cell);
}

function updateBoard() {
  const cells = visible();
  const shown = byId("view-best").checked ? bestOfEach(cells) : new Set(cells);
  const count = page.headline ? page.metrics[sort.ranking].count : 0;
  const restricted = page.headline && cells.length < Object.keys(page.cells).length;
  const found = restricted ? pick(cells, sort.ranking) : null;
  const leaders = new Set(!page.headline ? [] : !restricted ? page.metrics[sort.ranking].leaders : found ? [found.best, ...found.tied] : []);
  const at = new Map(ranking().map((cell, k) => [cell, k]));
  const order = [...shown].map((cell) => [cell, sortValue(cell, at)]).sort(([a, one], [b, other]) => {
    if (one === null || other === null) return (one === null) - (other === null) || at.get(a) - at.get(b);
    return sort.direction * (typeof one === "string" ? one.localeCompare(other) : one - other) || at.get(a) - at.get(b);
  }).map(([cell]) => cell);
  const window = order.slice(0, limit).map(bodyOf);
  for (const body of window) {
    const [, , , low, high, , , place] = metricOf(body.dataset.cell, sort.ranking);
    body.classList.toggle("tied", leaders.has(body.dataset.cell));
    body.querySelector(".place").textContent = place;
    const bar = body.querySelector(".bar"), mark = bar.firstElementChild;
    bar.hidden = low === null;
    if (low !== null) Object.assign(mark.style, { left: `${(100 * (low - 1)) / count}%`, width: `${(100 * (high - low + 1)) / count}%` });
  }
  for (const body of [...board.tBodies]) body.remove(); // the head stays: its buttons keep the keyboard's focus
  board.append(...window);
  byId("rows-shown").textContent = order.length ? "" : "No row matches: clear the filter or raise the budget.";
  byId("rows-more").hidden = order.length <= limit;
  byId("rows-more").textContent = `show more (${limit.toLocaleString("en")} of ${plural(order.length, "row")} shown)`;
  for (const cell of all("th[data-key]", board)) {
    if (cell.dataset.key === sort.key) cell.setAttribute("aria-sort", sort.direction > 0 ? "ascending" : "descending");
    else cell.removeAttribute("aria-sort");
  }
  const note = byId("rank-note");
  if (note) note.textContent = `95% rank sets by ${page.metrics[sort.ranking].short} among ${plural(count, "row")}`;
  if (page.headline) updateAnswer(restricted, found);
  updateBudgets();
  updateColumns();
}

// Says which columns the screen has no room for: they are reached by scrolling the table sideways.
function updateColumns() {
  const box = board.parentElement, edge = box.getBoundingClientRect().left + box.clientWidth + box.scrollLeft;
  const hidden = all("thead th", board).filter((cell) => cell.getBoundingClientRect().right + box.scrollLeft > edge + 1);
  const names = listed(hidden.map((cell) => cell.textContent), 20);
  byId("columns-hidden").textContent = hidden.length ? `${plural(hidden.length, "more column")}, to the right (scroll the table sideways): ${names}` : "";
}

function updateAnswer(restricted, found) {
  const metric = page.metrics[sort.ranking], most = byId("budget").value;
  if (!restricted) { heading("answer", metric.answer); byId("sureness").replaceChildren(...kept(metric.sureness)); return; }
  const scope = [most && `at most ${most} NFE`, wanted() && `rows matching “${byId("filter").value.trim()}”`].filter(Boolean).join(", ");
  const prefix = scope[0].toUpperCase() + scope.slice(1);
  if (!found) { heading("answer", `${prefix}: no row has ${metric.short}`); byId("sureness").textContent = ""; return; }
  const models = [...new Set(found.tied.map((cell) => page.cells[cell].model))].filter((model) => model !== page.cells[found.best].model);
  const tied = models.length ? `; ${listed(models)} ${models.length === 1 ? "is" : "are"} statistically tied` : "";
  heading("answer", `${prefix}: ${page.cells[found.best].label} leads on ${metric.short} ${valueText(found.best, sort.ranking)}${tied}`);
  byId("sureness").replaceChildren(...kept(cheapest(found, (cell) => page.cells[cell].evaluations)));
}

function cheapest({ best, tied }, cost) {
  const cheaper = tied.filter((cell) => cost(cell) !== null && cost(cell) < cost(best));
  if (!cheaper.length) return "No cheaper setting is tied with it.";
  const least = cheaper.reduce((one, other) => (cost(other) < cost(one) ? other : one));
  return `The cheapest setting tied with it is ${page.cells[least].label}: ${cost(least)} instead of ${cost(best)} network evaluations per image.`;
}

function updateBudgets() {
  const strip = byId("budgets");
  if (!strip) return;
  const cost = byId("strip-cost").value, metric = page.metrics[sort.ranking];
  let { title, levels } = page.budgets[sort.ranking][cost];
  if (wanted()) {
    const among = filtered();
    levels = levels.flatMap(([level, , , most]) => {
      const found = pick([...bestOfEach(among.filter((cell) => within(cell, cost, most)))], sort.ranking);
      return found ? [[level, found.best, listed(found.tied.map((cell) => page.cells[cell].model), 2), most]] : [];
    });
    title = `Best within budget by ${metric.short} among rows matching “${byId("filter").value.trim()}”`;
  }
  strip.replaceChildren(...levels.map(([level, winner, tied]) => {
    const row = page.cells[winner], item = document.createElement("li");
    item.style.setProperty("--model", colours[row.model]);
    const steps = row.marked.slice(row.model.length).replace(/^( at|,) /, "");
    item.append(make("span", `≤ ${level}`, "level"), keptIn("b", row.model), make("small", steps),
      make("span", `${metric.short} ${valueText(winner, sort.ranking)}`), keptIn("small", tied ? `tied: ${tied}` : "no tie"));
    return item;
  }));
  byId("budget-title").replaceChildren(...kept(title));
}

function sortBy(key) {
  if (key in page.beaten) sort.ranking = key; // not a composite, as `rank` is
  if (key === sort.key) sort.direction = -sort.direction;
  else if (key in page.beaten) sort.direction = -better(key);
  else sort.direction = key === "images_per_second" ? -1 : 1;
  sort.key = key;
  updateBoard();
  saveState();
}


// ---- the picker: the best setting under a budget and constraints, and what is tied with it -----------------

const SPENDING = { // the cost that a budget of each kind counts, and how much of the budget one of it takes
  nfe: ["nfe", () => 1],
  milliseconds: ["seconds", () => 1e3],
  latency: ["latency_seconds", () => 1e3],
  device: ["seconds", () => 1e3], // for 1,000 images
  money: ["seconds", () => 1e3 / 3600 * number("pick-price")],
};

const number = (id) => (byId(id).value.trim() === "" ? null : Number(byId(id).value));

function candidates() {
  const [kind, factor] = SPENDING[byId("pick-cost").value], most = number("pick-most");
  return Object.keys(page.cells).filter((cell) => {
    const row = page.cells[cell];
    if (row.random_weights || (byId("pick-licence").value === "commercial" && !row.commercial)) return false;
    if (most !== null && !within(cell, kind, most / factor())) return false;
    return [1, 2].every((place) => {
      const key = byId(`pick-limit-${place}`).value, bound = number(`pick-bound-${place}`);
      const value = key && metricOf(cell, key)[0];
      return !key || bound === null || (value !== null && better(key) * (value - bound) >= 0);
    });
  });
}

function updatePick() {
  if (!byId("pick-metric")) return;
  byId("pick-price").closest("label").hidden = byId("pick-cost").value !== "money";
  const key = byId("pick-metric").value, metric = page.metrics[key];
  for (const place of [1, 2]) {
    const limited = byId(`pick-limit-${place}`).value;
    byId(`pick-sign-${place}`).textContent = limited && !page.metrics[limited].higher ? "≤" : "≥";
  }
  const among = candidates(), found = pick(among, key), table = byId("pick-table");
  if (!found) {
    heading("picker", `No setting with ${metric.short} meets these conditions`);
    table.hidden = true;
    return;
  }
  const { best, tied } = found, row = page.cells[best];
  const setting = row.steps === null ? "" : `, ${plural(row.steps, "step")}, cfg ${row.cfg}`;
  const known = key in page.beaten, words = known ? ["tied with it", "nothing is tied with it"] : ["equal to it", "ties are not known"];
  const others = tied.length ? `${plural(tied.length, "setting")} ${tied.length === 1 ? "is" : "are"} ${words[0]}` : words[1];
  heading("picker", `${row.model}${setting}: ${metric.short} ${valueText(best, key)}, best of ${plural(among.length, "setting")}; ${others}`);
  table.hidden = false;
  const unit = byId("pick-cost").value, [kind, factor] = SPENDING[unit];
  const spent = (cell) => (costOf(cell, kind) === null ? null : factor() * costOf(cell, kind));
  const line = (cell) => {
    const one = page.cells[cell], tr = document.createElement("tr"), cost = spent(cell);
    const texts = [cell === best ? "best" : known ? "tied" : "equal", one.marked.slice(one.model.length).replace(/^( at|,) /, ""), valueText(cell, key),
      one.evaluations === null ? "–" : `${one.evaluations}`, seconds(one.seconds), cost === null ? "–" : `${Number(cost.toPrecision(3))}`, one.licence];
    tr.append(...texts.map((text) => keptIn("td", text)));
    const name = keptIn("th", one.model);
    name.scope = "row";
    tr.children[0].after(name);
    return tr;
  };
  const cheapFirst = [...tied].sort((a, b) => (spent(a) ?? Infinity) - (spent(b) ?? Infinity));
  table.tHead.rows[0].cells[3].textContent = metric.short;
  table.tHead.rows[0].cells[6].textContent = byId("pick-cost").selectedOptions[0].textContent;
  const again = { nfe: 6, milliseconds: 5 }[unit]; // a column that would say once more what its neighbour says
  table.tBodies[0].replaceChildren(...[best, ...cheapFirst.slice(0, 25)].map(line));
  for (const tr of table.rows) for (const [place, cell] of [...tr.cells].entries()) cell.hidden = place === again;
  const notes = known ? [] : [`${metric.short} has no interval, so only equal settings are known to be tied.`];
  if (cheapFirst.length > 25) notes.push(`The 25 cheapest of ${cheapFirst.length} tied settings.`);
  byId("pick-note").textContent = notes.join(" ");
}

// ---- every pair: the win matrix ----------------------------------------------------------------------------

function updateWins() {
  if (!byId("wins-metric")) return;
  const key = byId("wins-metric").value, { cells, signs, text } = page.wins[key] || { cells: [], signs: [], text: "" };
  const table = byId("wins-table"), name = (cell) => page.cells[cell].marked;
  const head = make("tr");
  head.append(make("td"), ...cells.map((cell, k) => Object.assign(make("th", `${k + 1}`), { title: name(cell), scope: "col" })));
  table.tHead.replaceChildren(head);
  table.tBodies[0].replaceChildren(...cells.map((cell, i) => {
    const row = make("tr"), first = keptIn("th", `${i + 1} ${name(cell)}`);
    first.scope = "row";
    row.append(first, ...cells.map((other, j) => {
      const sign = i === j ? "" : signs[i][j] === "?" ? "?" : signs[i][j];
      const words = { "+": "better than", "-": "worse than", "=": "tied with", "?": "not comparable with" }[sign];
      const shown = make("td", { "+": "▲", "-": "▽", "=": "=", "?": "?", "": "" }[sign], { "+": "won", "-": "lost" }[sign] || "");
      if (words) shown.title = `${name(cell)} is ${words} ${name(other)}`;
      return shown;
    }));
    return row;
  }));
  heading("wins", text);
}

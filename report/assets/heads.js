
// ---- two rows head to head: their differences, and their images from the same noise -------------------------

const pictures = new Map(all(".samples img[data-cell]").map((image) => [`${image.dataset.cell} ${image.dataset.index}`, image]));

function updateHeads() {
  if (!byId("head-one")) return;
  const chosen = [byId("head-one").value, byId("head-other").value], [one, other] = chosen;
  const places = chosen.map((cell) => page.heads.cells.indexOf(cell)), turned = places[0] > places[1];
  const found = page.heads.pairs[[...places].sort((a, b) => a - b).join(" ")] || [];
  const lines = found.map(([key, first, second, difference, less, verdict, wins, remark]) => {
    const row = make("tr");
    const [a, b] = turned ? [second, first] : [first, second];
    const said = verdict === 0 ? "tied" : `${page.cells[(verdict > 0) !== turned ? one : other].model} is better`;
    const win = wins === null ? "" : `${Math.round(100 * (turned ? 1 - wins : wins))}%`;
    const texts = [a, b, turned ? less : difference, one === other ? "" : said, win];
    const name = make("th", page.metrics[key].short);
    name.scope = "row";
    if (remark) name.append(make("small", ` ${remark}`));
    row.append(name, ...texts.map((text) => keptIn("td", text)));
    return row;
  });
  const table = byId("head-table");
  table.tBodies[0].replaceChildren(...lines);
  chosen.forEach((cell, k) => { table.tHead.rows[0].cells[k + 1].textContent = page.cells[cell].marked; });
  const count = (sign) => found.filter(([, , , , , verdict]) => (turned ? -verdict : verdict) === sign).length;
  const labels = chosen.map((cell) => page.cells[cell].label);
  if (one === other) heading("heads", "Choose two different rows");
  else heading("heads", `${labels[0]} is better than ${labels[1]} by ${count(1)} of ${plural(found.length, "metric")}, worse by ${count(-1)}, tied by ${count(0)}`);
  showPairs(chosen);
}

function showPairs(chosen) {
  const grid = byId("head-images");
  const indices = [...pictures.keys()].filter((key) => key.startsWith(`${chosen[0]} `)).map((key) => Number(key.split(" ")[1]));
  const [judge, which, whose] = byId("head-order").value.split(":"), scores = (cell, index) => page.heads.scores[cell]?.[judge]?.[index] ?? null;
  const by = chosen[whose === "other" ? 1 : 0];
  if (judge) {
    const known = indices.filter((index) => scores(by, index) !== null).sort((a, b) => scores(by, b) - scores(by, a));
    indices.splice(0, indices.length, ...(which === "worst" ? known.reverse() : known).slice(0, 8));
  }
  const copy = (cell, index) => {
    const place = make("td"), image = pictures.get(`${cell} ${index}`), score = judge ? scores(cell, index) : null;
    if (image) place.append(image.cloneNode());
    if (score !== null) place.append(make("small", `${Number(score.toPrecision(4))}`));
    return place;
  };
  const line = (name, places) => { const row = make("tr"), first = keptIn("th", name); first.scope = "row"; row.append(first, ...places); return row; };
  const labels = indices.map((index) => pictures.get(`${chosen[0]} ${index}`).dataset);
  const head = make("tr");
  head.append(make("th", "sample"), ...labels.map((own) => make("th", own.name || own.index)));
  const rows = chosen.map((cell) => line(page.cells[cell].marked, indices.map((index) => copy(cell, index))));
  const used = {};
  if (Object.keys(page.real).length) rows.push(line("real images", labels.map((own) => {
    const place = make("td"), sources = page.real[own.label] || [], turn = (used[own.label] = (used[own.label] ?? -1) + 1);
    const source = sources.length ? sources[turn % sources.length] : null;
    if (source) place.append(Object.assign(new Image(), { src: source, alt: `real image, ${own.name}`, className: pictures.values().next().value.className }));
    return place;
  })));
  grid.tHead.replaceChildren(head);
  grid.tBodies[0].replaceChildren(...rows);
}


// ---- state in the address, so that a link reproduces a view ------------------------------------------------

function saveState() {
  const state = new URLSearchParams();
  if (page.ranking !== page.first) state.set("ranking", page.ranking);
  for (const control of all("[data-state]")) {
    if (control.type === "radio") { if (control.checked && control.id !== "view-best") state.set("view", control.id); }
    else if (control.value !== control.dataset.initial) state.set(control.id, control.value);
  }
  if (sort.key !== "rank") state.set("sort", `${sort.key}:${sort.direction}`);
  if (sort.ranking !== page.headline) state.set("by", sort.ranking);
  for (const model of hiddenModels) state.append("hide", model);
  const text = state.toString();
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

function loadState() {
  for (const control of all("[data-state]")) control.dataset.initial = control.value;
  const state = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of state) {
    const control = byId(key === "view" ? value : key);
    if (key === "by") {
      if (value in page.beaten) sort.ranking = value;
    } else if (key === "hide") {
      for (const model of value in colours ? [value] : value.split(",")) if (model in colours) hiddenModels.add(model);
    } else if (key === "sort") {
      const [name, direction] = value.split(":");
      if (!all("th[data-key]", board).some((cell) => cell.dataset.key === name)) continue;
      sort.key = name;
      sort.direction = Number(direction) < 0 ? -1 : 1;
      if (name in page.beaten && !state.has("by")) sort.ranking = name;
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

function showModels() {
  for (const chip of all(".chips button")) chip.setAttribute("aria-pressed", String(!hiddenModels.has(chip.dataset.model)));
  for (const name of Object.keys(page.figures)) {
    if (name in updates) updates[name]();
    else if (page.figures[name].data.some((trace) => trace.meta)) draw(name);
  }
}

// ---- wiring ------------------------------------------------------------------------------------------------

const updates = {
  curve: updateCurve, pareto: updatePareto, guidance: updateGuidance, class: updateClasses, grid: showGrid,
  view: updateBoard, strip: updateBudgets, budget: updateBoard, filter: updateBoard, pick: updatePick, head: updateHeads,
  wins: updateWins,
};
for (const chip of all(".chips button")) {
  colours[chip.dataset.model] = chip.querySelector(".dot").style.backgroundColor;
  chip.addEventListener("click", () => {
    const model = chip.dataset.model;
    if (!hiddenModels.delete(model)) hiddenModels.add(model);
    showModels();
    saveState();
  });
}
for (const cell of all("th[data-key]", board)) cell.querySelector("button").addEventListener("click", () => sortBy(cell.dataset.key));
for (const control of all("[data-scripted]")) control.hidden = false;
loadState();
for (const control of all("[data-state]")) {
  const update = updates[control.id.split("-")[0]];
  control.addEventListener("input", () => { limit = WINDOW; update(); saveState(); });
  if (control.type !== "radio" && control.value !== control.dataset.initial) update();
}
const more = byId("rows-more");
const showMore = () => { limit += WINDOW; updateBoard(); };
more.addEventListener("click", showMore);
new IntersectionObserver(([entry]) => { if (entry.isIntersecting && !more.hidden) showMore(); }, { rootMargin: "600px" }).observe(more);
const switched = byId("ranking");
if (switched) switched.addEventListener("change", () => {
  location.hash = switched.value === page.first ? "" : `ranking=${switched.value}`;
  location.reload();
});
for (const link of all("nav.sections a")) link.addEventListener("click", (event) => { // the address holds the view, not the place
  event.preventDefault();
  const section = byId(link.dataset.section);
  section.scrollIntoView();
  section.focus({ preventScroll: true });
});
window.addEventListener("resize", updateColumns);
board.classList.add("scripted");
updateBoard();
for (const update of [updatePick, updateHeads, updateWins]) update();
if (hiddenModels.size) showModels();
drawAll().then(() => { document.documentElement.dataset.drawn = "true"; });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
for (const [event, on] of [["beforeprint", true], ["afterprint", false]]) {
  window.addEventListener(event, () => { printing = on; drawAll(); });
}

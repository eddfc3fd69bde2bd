// Sorting, filtering and keyboard navigation of the table of all cells.

const cellsTable = document.getElementById("cells");
const body = cellsTable.tBodies[0];
const form = document.getElementById("filters");
const search = document.getElementById("words");
const count = document.getElementById("count");
const heads = [...cellsTable.tHead.rows[0].cells];
const squeeze = (text) => text.trim().replace(/\s+/g, " ");
const rows = [...body.rows].map((tr, order) => {
  const texts = [...tr.cells].map((td) => squeeze(td.textContent));
  const id = DATA.ids[order];
  return { tr, order, texts, id, hay: `${texts.join(" ")} ${id}`.toLowerCase(),
    opener: tr.querySelector(".open") };
});
const collator = new Intl.Collator("en", { numeric: true });
let visible = rows;
let current = rows[0];
let opened = -1;

function sortBy(column) {
  const head = heads[column];
  const next = { none: "ascending", ascending: "descending", descending: "none" };
  const direction = next[head.getAttribute("aria-sort")];
  for (const each of heads) each.setAttribute("aria-sort", each === head ? direction : "none");
  if (direction === "none") rows.sort((a, b) => a.order - b.order);
  else {
    const sign = direction === "ascending" ? 1 : -1;
    const numeric = head.classList.contains("number");
    rows.sort((a, b) => ordered(a.texts[column], b.texts[column], numeric, sign) || a.order - b.order);
  }
  body.append(...rows.map((each) => each.tr));
  filter();
}

// Cells without a value come last in either direction.
function ordered(a, b, numeric, sign) {
  if (!numeric) return sign * collator.compare(a, b);
  const [x, y] = [parseFloat(a), parseFloat(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
  return sign * (x - y);
}

function filter() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = [...form.querySelectorAll("select")]
    .filter((each) => each.selectedIndex > 0)
    .map((each) => [Number(each.dataset.column), squeeze(each.options[each.selectedIndex].text)]);
  visible = rows.filter(({ hay, texts }) =>
    words.every((word) => hay.includes(word)) && wanted.every(([n, text]) => texts[n] === text));
  const shown = new Set(visible);
  for (const each of rows) each.tr.hidden = !shown.has(each);
  count.textContent = visible.length === rows.length
    ? `${rows.length} cells` : `${visible.length} of ${rows.length} cells`;
  if (visible.length && !shown.has(current)) makeCurrent(visible[0]);
}

// Only one row is in the tab order; the arrow keys move from there.
function makeCurrent(row) {
  current.opener.tabIndex = -1;
  row.opener.tabIndex = 0;
  current = row;
}

function walk(event) {
  const here = visible.findIndex((each) => each.opener === document.activeElement);
  const last = visible.length - 1;
  const to = { ArrowDown: here + 1, ArrowUp: here - 1, Home: 0, End: last,
    PageDown: here + 10, PageUp: here - 10 }[event.key];
  if (here < 0 || to === undefined) return;
  event.preventDefault();
  const row = visible[Math.min(last, Math.max(0, to))];
  makeCurrent(row);
  row.opener.focus();
}

function show(row) {
  opened = visible.indexOf(row);
  makeCurrent(row);
  const held = panel.contains(document.activeElement) ? document.activeElement.title : "";
  fillDetails(row.order, move);
  if (!panel.open) panel.showModal();
  // The focused button was replaced with the old content; focus its successor.
  const buttons = [...panel.querySelectorAll(".buttons button")];
  (buttons.find((each) => each.title === held) || buttons.at(-1)).focus();
  panel.scrollTop = 0;
  history.replaceState(null, "", `#cell=${encodeURIComponent(row.id)}`);
}

function move(by) {
  const row = visible[opened + by];
  if (row) show(row);
}

function showNamed() {
  if (!location.hash.startsWith("#cell=")) return;
  let name = location.hash.slice(6);
  try {
    name = decodeURIComponent(name);
  } catch {
    return;
  }
  const row = rows.find((each) => each.id === name);
  if (row) show(row);
}

heads.forEach((head, n) => head.querySelector("button").addEventListener("click", () => sortBy(n)));
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
body.addEventListener("keydown", walk);
body.addEventListener("click", (event) => {
  const tr = event.target.closest("tr");
  if (tr && !String(getSelection())) show(rows.find((each) => each.tr === tr));
});
panel.addEventListener("click", (event) => event.target === panel && panel.close());
panel.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  // In a focused region, the arrow keys scroll.
  if (by && !event.target.closest("[role=region]")) move(by);
});
panel.addEventListener("close", () => {
  history.replaceState(null, "", "#all");
  if (visible[opened]) visible[opened].opener.focus();
});
addEventListener("hashchange", showNamed);
form.hidden = false;
filter();
showNamed();

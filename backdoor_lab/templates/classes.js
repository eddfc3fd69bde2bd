// The accuracy per class and the confusion matrices of one cell.

const OPEN_CLASSES = 20;
const WHEN = ["before the defense", "after the defense"];

function classTables(cell) {
  const found = DATA.classes.cells[cell];
  if (!found) return [];
  const value = (at) => (at === null ? null : DATA.classes.values[at]);
  const names = value(found.classes);
  const parts = [scrolled("Accuracy per class", accuracies(names, value(found.n_test), found.nat.map(value)))];
  found.confusion.map(value).forEach((matrix, n) => {
    if (matrix) parts.push(scrolled(`Confusion matrix ${WHEN[n]}`, confusion(names, matrix, WHEN[n])));
  });
  if (found.note) parts.push(element("p", {}, found.note));
  return [element("details", { class: "classes", ...(names.length <= OPEN_CLASSES ? { open: "" } : {}) },
    element("summary", {}, "Classes"), ...parts)];
}

// Tab reaches the table; the arrow keys then scroll it.
const scrolled = (label, table) =>
  element("div", { class: "report", role: "region", "aria-label": label, tabindex: "0" }, table);

const headCells = (scope, texts) => texts.map((text) => element("th", { scope }, text));

function classTable(caption, head, rows) {
  return element("table", {}, element("caption", {}, caption),
    element("thead", {}, element("tr", {}, ...headCells("col", head))),
    element("tbody", {}, ...rows));
}

function accuracies(names, sizes, nat) {
  const shown = nat.filter((each) => each);
  return classTable("Accuracy on the clean test images of each class, in %",
    ["Class", "Images", ...["Nat1", "Nat2"].slice(0, shown.length)],
    names.map((name, n) => element("tr", {}, ...headCells("row", [name]),
      ...[sizes[n], ...shown.map((each) => each[n])].map((text) => element("td", {}, `${text}`)))));
}

function confusion(names, matrix, when) {
  return classTable(
    `Clean test images by true class (rows) and predicted class (columns), ${when}`,
    ["True \\ predicted", ...names],
    matrix.map((counts, n) => element("tr", {}, ...headCells("row", [names[n]]),
      ...counts.map((count, m) => element("td", n === m ? { class: "best" } : {}, `${count}`)))));
}

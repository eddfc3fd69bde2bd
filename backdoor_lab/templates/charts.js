// Small charts as inline SVG. Series differ in shape or line style as well as in color.

const SVG = "http://www.w3.org/2000/svg";
const SIZE = { width: 360, height: 220, left: 46, right: 12, top: 34, bottom: 40 };

function shape(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(1).replace(".0e", "e");
  return String(Number(value.toPrecision(digits)));
}

// A function from values in `low`..`high` to coordinates, with the positions of its ticks.
function scale(low, high, from, to, log = false) {
  const as = log ? Math.log10 : (value) => value;
  const [a, b] = [as(low), as(high)];
  const at = (value) => from + ((as(value) - a) / (b - a || 1)) * (to - from);
  at.ticks = log ? decades(a, b) : steps(low, high);
  return at;
}

function steps(low, high) {
  const raw = (high - low || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((each) => each * power >= raw);
  const found = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) {
    found.push(Number((n * step).toPrecision(12)));
  }
  return found;
}

function decades(a, b) {
  const every = Math.max(1, Math.ceil((b - a) / 5));
  const found = [];
  for (let n = Math.ceil(a); n <= b; n++) if (n % every === 0) found.push(10 ** n);
  return found.length > 1 ? found : [10 ** a, 10 ** b];
}

function chart(title, summary, x, y, labels) {
  const { width, height, left, right, top, bottom } = SIZE;
  const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart" });
  svg.append(shape("title", {}, `${title}. ${summary}`));
  const axes = shape("g", { class: "axes" });
  for (const tick of x.ticks) {
    const at = x(tick).toFixed(1);
    axes.append(shape("line", { x1: at, x2: at, y1: height - bottom, y2: height - bottom + 4 }));
    const place = { x: at, y: height - bottom + 15, "text-anchor": "middle" };
    axes.append(shape("text", place, number(tick, 3)));
  }
  for (const tick of y.ticks) {
    const at = y(tick).toFixed(1);
    axes.append(shape("line", { x1: left, x2: width - right, y1: at, y2: at, class: "rule" }));
    const place = { x: left - 5, y: Number(at) + 3.5, "text-anchor": "end" };
    axes.append(shape("text", place, number(tick, 3)));
  }
  const base = height - bottom;
  axes.append(shape("line", { x1: left, x2: width - right, y1: base, y2: base }));
  axes.append(shape("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" },
    labels.x));
  axes.append(shape("text", { x: 12, y: (top + base) / 2, "text-anchor": "middle",
    transform: `rotate(-90 12 ${(top + base) / 2})` }, labels.y));
  svg.append(axes);
  return svg;
}

// A legend above the chart. `entries` are [class, mark, text].
function legend(svg, entries) {
  const group = shape("g", { class: "legend" });
  let x = SIZE.left;
  let y = 11;
  for (const [kind, mark, text] of entries) {
    const width = 20 + text.length * 5.4;
    if (x + width > SIZE.width) [x, y] = [SIZE.left, y + 13];
    group.append(sample(kind, mark, x, y - 3));
    group.append(shape("text", { x: x + 17, y }, text));
    x += width + 6;
  }
  svg.append(group);
  return svg;
}

function sample(kind, mark, x, y) {
  if (mark === "line") return shape("line", { class: kind, x1: x, x2: x + 14, y1: y, y2: y });
  if (mark === "box") return shape("rect", { class: kind, x, y: y - 4, width: 14, height: 8 });
  return shape("path", { class: kind, d: MARKS[mark](x + 7, y) });
}

const MARKS = {
  dot: (x, y, r = 2.6) => `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`,
  wedge: (x, y, r = 4) => `M${x} ${y - r}L${x + r} ${y + r * 0.8}L${x - r} ${y + r * 0.8}z`,
  cross: (x, y, r = 4) => `M${x - r} ${y - r}L${x + r} ${y + r}M${x - r} ${y + r}L${x + r} ${y - r}`,
  spot: (x, y) => MARKS.dot(x, y, 5),
};

function line(points, x, y, kind) {
  const d = points.map(([a, b], n) => `${n ? "L" : "M"}${x(a).toFixed(1)} ${y(b).toFixed(1)}`);
  return shape("path", { class: kind, d: d.join("") });
}

const across = (low, high, log) =>
  scale(low, high, SIZE.left, SIZE.width - SIZE.right, log);
const upward = (low, high) => scale(low, high, SIZE.height - SIZE.bottom, SIZE.top);
const sum = (values) => values.reduce((total, each) => total + each, 0);

function histogram({ low, high, log, cut, clean, poison }) {
  const bins = clean.length;
  const share = (counts) => counts.map((n) => (100 * n) / (sum(counts) || 1));
  const shares = { clean: share(clean), poison: share(poison) };
  const edge = (n) => (log ? low * (high / low) ** (n / bins) : low + ((high - low) * n) / bins);
  const x = across(low, high, log);
  const y = upward(0, Math.max(1, ...shares.clean, ...shares.poison));
  const said = `${sum(clean)} clean and ${sum(poison)} poisoned; threshold ${number(cut)}`;
  const svg = chart("Scores in the target class", said, x, y,
    { x: log ? "score (logarithmic)" : "score", y: "% of each group" });
  for (const kind of ["clean", "poison"]) {
    const bars = shape("g", { class: `bars ${kind}` });
    shares[kind].forEach((value, n) => {
      if (!value) return;
      // Poison bars are narrower and centered in the bin, so that both bars stay visible.
      const inset = kind === "poison" ? 0.25 : 0;
      const [a, b] = [x(edge(n + inset)), x(edge(n + 1 - inset))];
      bars.append(shape("rect", { x: a.toFixed(1), width: Math.max(b - a - 0.5, 0.5).toFixed(1),
        y: y(value).toFixed(1), height: (y(0) - y(value)).toFixed(1) }));
    });
    svg.append(bars);
  }
  const marks = [["bars clean", "box", `clean (${sum(clean)})`],
    ["bars poison", "box", `poisoned (${sum(poison)})`]];
  if (cut !== null) {
    const at = x(cut).toFixed(1);
    svg.append(shape("line", { class: "cut", x1: at, x2: at, y1: SIZE.top, y2: y(0) }));
    marks.push(["cut", "line", "threshold"]);
  }
  return legend(svg, marks);
}

function scatter({ points, totals, span }) {
  const room = (n) => {
    const [low, high] = span[n];
    const pad = 0.04 * (high - low || 1);
    return [low - pad, high + pad];
  };
  const [x, y] = [across(...room(0)), upward(...room(1))];
  const said = `${totals[0] + totals[1]} clean, ${totals[2] + totals[3]} poisoned, ` +
    `${totals[1] + totals[3]} removed; at most ${points.length / 3} drawn`;
  const svg = chart("Projections on the two top singular directions", said, x, y,
    { x: "first direction", y: "second direction" });
  const place = (value, axis) => span[axis][0] + (value / 999) * (span[axis][1] - span[axis][0]);
  const paths = { clean: "", poison: "", removed: "" };
  for (let n = 0; n < points.length; n += 3) {
    const at = [x(place(points[n], 0)).toFixed(1), y(place(points[n + 1], 1)).toFixed(1)].map(Number);
    const kind = points[n + 2];
    paths[kind > 1 ? "poison" : "clean"] += kind > 1 ? MARKS.wedge(...at, 3.6) : MARKS.dot(...at);
    if (kind % 2) paths.removed += MARKS.cross(...at, 4.2);
  }
  for (const [kind, d] of Object.entries(paths)) svg.append(shape("path", { class: `mark ${kind}`, d }));
  return legend(svg, [["mark clean", "dot", "clean"], ["mark poison", "wedge", "poisoned"],
    ["mark removed", "cross", "removed"]]);
}

function removal({ removed, left, total, scored, at }) {
  const x = across(0, removed.at(-1));
  const y = upward(0, total);
  const said = `${at[1]} of ${total} left after removing ${at[0]}`;
  const svg = chart("Poison left", said, x, y, { x: "images removed", y: "poisoned images left" });
  svg.append(line([[0, total], [removed.at(-1), total - scored]], x, y, "curve chance"));
  svg.append(line(removed.map((value, n) => [value, left[n]]), x, y, "curve mine"));
  if (at[0] <= removed.at(-1)) {
    svg.append(shape("path", { class: "mark spot", d: MARKS.spot(x(at[0]), y(at[1])) }));
  }
  return legend(svg, [["curve mine", "line", "by score"], ["curve chance", "line", "at random"],
    ["mark spot", "spot", "the defense"]]);
}

function losses(given) {
  const all = Object.values(given).flat();
  const x = across(Math.min(1, ...all.map(([epoch]) => epoch)), Math.max(2, ...all.map(([e]) => e)));
  x.ticks = x.ticks.filter(Number.isInteger);
  const y = upward(0, Math.max(...all.map(([, loss]) => loss)));
  const last = Object.entries(given).map(([name, loss]) => `${name} ends at ${number(loss.at(-1)[1])}`);
  const svg = chart("Training loss", last.join(", "), x, y, { x: "epoch", y: "mean loss" });
  const names = { train: "mine", retrain: "chance" };
  for (const [name, points] of Object.entries(given)) {
    svg.append(line(points, x, y, `curve ${names[name]}`));
    if (points.length < 30) {
      const d = points.map(([a, b]) => MARKS[name === "train" ? "dot" : "wedge"](x(a), y(b), 3)).join("");
      svg.append(shape("path", { class: `mark ${names[name]}`, d }));
    }
  }
  return legend(svg, Object.keys(given).map((name) => [`curve ${names[name]}`, "line",
    name === "train" ? "first training" : "retraining"]));
}

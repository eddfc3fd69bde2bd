// The details of one cell. Values from records are inserted as text, never as markup.

const DATA = JSON.parse(document.getElementById("data").textContent);
const panel = document.getElementById("details");
const TILE = 64;
const KINDS = {
  removed: ["Removed, poisoned", "correctly removed poison, highest scores first"],
  mistaken: ["Removed, clean", "removed by mistake"],
  missed: ["Missed", "poison that was kept, highest scores first"],
};
const GROUPS = ["result", "counts", "detection", "choices", "protocol", "config", "dataset",
  "hashes", "run"];
const OPEN = ["result", "counts", "detection"];

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function fillDetails(cell, move) {
  const facts = factsOf(cell);
  const pictures = DATA.pictures[cell] || {};
  const id = DATA.ids[cell];
  const button = (text, says, act) =>
    element("button", { type: "button", title: says, "aria-label": says, onclick: act }, text);
  panel.replaceChildren(
    element("div", { class: "bar" },
      element("h2", { id: "details-title" }, id),
      element("div", { class: "buttons" },
        button("‹", "previous cell (left arrow)", () => move(-1)),
        button("›", "next cell (right arrow)", () => move(1)),
        button("×", "close (escape)", () => panel.close()))),
    element("div", { class: "inside" },
      element("p", { class: "status" }, `Status: ${DATA.status[cell]}`),
      ...figures(cell), charts(pictures), ...images(pictures), ...notes(pictures),
      ...classTables(cell), ...command(facts), ...factGroups(facts)),
  );
}

function factsOf(cell) {
  const found = new Map();
  DATA.names.forEach((name, n) => {
    const value = (DATA.own[cell] || [])[n];
    if (value !== null && value !== undefined) found.set(name, [value, true]);
  });
  if (found.size) for (const [name, value] of Object.entries(DATA.common)) found.set(name, [value, false]);
  return found;
}

// Rounded in Python, like the tables, so that both show the same number.
function figures(cell) {
  const texts = DATA.figures[cell];
  if (texts[2] === "–") return [];
  return [element("table", { class: "figures" },
    row("th", ["", "Nat", "ASR", "poison"]),
    row("td", ["before", ...texts.slice(0, 3)]),
    row("td", ["after", ...texts.slice(3)]))];
}

const row = (tag, texts) => element("tr", {}, ...texts.map((text) => element(tag, {}, text)));

function charts({ scores, scatter: points, curve, loss }) {
  const found = element("div", { class: "charts" });
  const add = (title, svg) => found.append(element("figure", {}, element("figcaption", {}, title), svg));
  if (scores) add("Scores in the target class", histogram(scores));
  if (points) add("Two top singular directions", scatter(points));
  if (curve) add("Poison left by number removed", removal(curve));
  if (loss && Object.keys(loss).length) add("Training loss", losses(loss));
  return found;
}

function images({ images: strip }) {
  if (!strip || !strip.sheet) return [];
  const box = element("div", { class: "images" });
  box.style.setProperty("--sheet", `url("${strip.sheet}")`);
  const total = sum(Object.values(strip.rows).map((each) => each.length));
  let place = 0;
  for (const [kind, [title, says]] of Object.entries(KINDS)) {
    const shown = strip.rows[kind];
    const list = element("ul", { class: "tiles" });
    for (const each of shown) list.append(tile(strip, each, place++, total));
    box.append(element("h3", {}, title, element("small", {}, ` ${shown.length ? says : "none"}`)), list);
  }
  return [box];
}

function tile({ tile: [width, height], classes }, [score, given, was], place, total) {
  const factor = TILE / Math.max(width, height);
  const origin = was === given ? classes[given] : `${classes[was]} → ${classes[given]}`;
  const picture = element("span", { class: "tile", role: "img", "aria-label": origin });
  Object.assign(picture.style, {
    width: `${width * factor}px`, height: `${height * factor}px`,
    backgroundSize: `${total * width * factor}px ${height * factor}px`,
    backgroundPosition: `${-place * width * factor}px 0`,
  });
  return element("li", { title: `${origin}, score ${number(score)}` },
    picture, element("span", {}, number(score, 3)), element("span", {}, origin));
}

function notes({ notes: own }) {
  const told = [...(own || []), ...DATA.notes];
  return told.length ? [element("ul", { class: "notes" }, ...told.map((each) => element("li", {}, each)))]
    : [];
}

function command(facts) {
  const said = facts.get("run.command");
  if (!said) return [];
  return [element("h3", {}, "Command"), element("pre", {}, said[0])];
}

function factGroups(facts) {
  const groups = new Map(GROUPS.map((name) => [name, []]));
  for (const [name, [value, own]] of facts) {
    const dot = name.indexOf(".");
    const group = dot < 0 ? "result" : name.slice(0, dot);
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push([dot < 0 ? name : name.slice(dot + 1), value, own]);
  }
  const found = [];
  for (const [group, rows] of groups) {
    if (!rows.length) continue;
    const list = element("dl", { class: "facts" });
    for (const [name, value, own] of rows) {
      list.append(element("div", own ? { class: "own" } : {}, element("dt", {}, name),
        element("dd", {}, value)));
    }
    found.push(element("details", OPEN.includes(group) ? { open: "" } : {},
      element("summary", {}, group), list));
  }
  return found.length ? [element("h3", {}, "Record",
    element("small", {}, " bold where cells differ")), ...found] : [];
}

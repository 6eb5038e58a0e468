"use strict";

const report = JSON.parse(document.getElementById("data").textContent);
const { boxes, edges } = report;
const BORDER = -1, ROOT = 0;
const WIDTH = 172, HEIGHT = 44, GAP = 24, ROW = 36, HEAD = 30, PAD = 16, LANE = 14;
const SVG = "http://www.w3.org/2000/svg";

const children = boxes.map(() => []);
boxes.forEach((box, index) => { if (index !== ROOT) children[box.parent].push(index); });
const own = boxes.map(() => []);
edges.forEach((edge) => own[edge.block].push(edge));
const open = boxes.map((box) => box.open);
let selected = null;

// --- small helpers ------------------------------------------------------------------------------

const find = (id) => document.getElementById(id);

function make(tag, text, attributes = {}, parent = null) {
  const element = document.createElement(tag);
  return finish(element, text, attributes, parent);
}

function draw(tag, attributes = {}, parent = null, text = null) {
  return finish(document.createElementNS(SVG, tag), text, attributes, parent);
}

function finish(element, text, attributes, parent) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  if (parent) parent.append(element);
  return element;
}

const count = (number) => number.toLocaleString("en-US");

function short(number) {
  for (const [size, unit] of [[1e12, " T"], [1e9, " G"], [1e6, " M"], [1e4, " k"]])
    if (number >= size) return (size === 1e4 ? number / 1e3 : number / size).toPrecision(3) + unit;
  return count(number);
}

function bytes(number) {
  for (const [size, unit] of [[2 ** 30, " GiB"], [2 ** 20, " MiB"], [2 ** 10, " KiB"]])
    if (number >= size) return (number / size).toPrecision(3) + unit;
  return `${count(number)} B`;
}

const shape = (box) => `[${box.shape.join(", ")}]`;
const sizes = (box) => box.shape.filter((size) => typeof size === "number").join("×");
const cut = (text, most) => text.length > most ? `${text.slice(0, most - 1)}…` : text;
const family = getComputedStyle(document.body).fontFamily;
const NAME = `600 12px ${family}`, SUB = `10.5px ${family}`;  // as in the style sheet
const pen = document.createElement("canvas").getContext("2d");

function length(text, font) {
  pen.font = font;
  return pen.measureText(text).width;
}

// The text, or as much of its beginning as there is room for.
function shorten(text, room, font) {
  if (length(text, font) <= room) return text;
  const letters = [...text];
  let [fits, over] = [0, letters.length];
  while (over - fits > 1) {
    const middle = (fits + over) >> 1;
    if (length(`${letters.slice(0, middle).join("")}…`, font) <= room) fits = middle;
    else over = middle;
  }
  return `${letters.slice(0, fits).join("").trimEnd()}…`;
}

// Two texts beside each other: the second keeps as much as the first leaves, at least a share.
function shortenBoth(first, firstFont, second, secondFont, room, least) {
  const left = Math.max(room - length(first, firstFont), least * room);
  const shown = shorten(second, left, secondFont);
  return [shorten(first, room - length(shown, secondFont), firstFont), shown];
}
const colour = (kind) => `var(--${kind === "block" ? "block-kind" : kind})`;
const pairs = (list, rows) => {
  list.replaceChildren();
  for (const [name, value] of rows) { make("dt", name, {}, list); make("dd", value, {}, list); }
};

// --- layout: each block by itself, from rows and columns ----------------------------------------

function measure(index) {
  const box = boxes[index];
  if (!open[index]) return { width: WIDTH, height: HEIGHT };
  const inner = new Map(children[index].map((child) => [child, measure(child)]));
  const rows = [];
  const at = (row) => rows[row] ||= { items: [], height: 0 };
  for (const child of children[index]) {
    const { width, height } = inner.get(child);
    const row = at(boxes[child].row);
    row.items.push({ child, column: boxes[child].column, width });
    row.height = Math.max(row.height, height);
  }
  for (const edge of own[index])
    edge.bends.forEach(([row, column], place) =>
      at(row).items.push({ edge, place, column, width: LANE }));
  const block = { inner, rows, boxes: new Map(), bends: new Map(own[index].map((e) => [e, []])) };
  spread(rows, block);
  stack(rows, block, index === ROOT ? 0 : HEAD);
  return block;
}

// Left to right in each row, as near to the wanted columns as widths allow.
function spread(rows, block) {
  let least = Infinity, most = -Infinity;
  for (const row of rows) {
    if (!row) continue;
    row.items.sort((a, b) => a.column - b.column);
    let right = -Infinity, shift = 0;
    for (const item of row.items) {
      const wanted = item.column * (WIDTH + GAP);
      item.x = Math.max(wanted, right + item.width / 2);
      right = item.x + item.width / 2 + (item.edge ? 2 : GAP);
      shift += (item.x - wanted) / row.items.length;
    }
    for (const item of row.items) {
      item.x -= shift;
      least = Math.min(least, item.x - item.width / 2);
      most = Math.max(most, item.x + item.width / 2);
    }
  }
  if (least === Infinity) least = most = 0;
  for (const row of rows) for (const item of row ? row.items : []) item.x += PAD - least;
  block.width = Math.max(WIDTH, most - least + 2 * PAD);
  const spare = (block.width - (most - least + 2 * PAD)) / 2;
  for (const row of rows) for (const item of row ? row.items : []) item.x += spare;
}

function stack(rows, block, top) {
  let y = top;
  rows.forEach((row, number) => {
    if (!row) return;
    if (number === 0 && row.height) y += PAD;
    for (const item of row.items) {
      if (item.edge) {
        block.bends.get(item.edge)[item.place] = { x: item.x, top: y, bottom: y + row.height };
      } else {
        const { height } = block.inner.get(item.child);
        block.boxes.set(item.child, { x: item.x - item.width / 2, y: y + (row.height - height) / 2 });
      }
    }
    y += row.height + ROW;
  });
  block.height = y - ROW + (rows.length && rows.at(-1).height ? PAD : 0);
}

// --- drawing ------------------------------------------------------------------------------------

const canvas = find("canvas");
const view = draw("g", {}, canvas);
let drawn = new Map();  // index of a visible box -> its element and its place in the whole graph
let extent = { width: 1, height: 1 };
const camera = { x: 0, y: 0, scale: 1 };

function paint() {
  const block = measure(ROOT);
  extent = block;
  drawn = new Map();
  view.replaceChildren();
  const marker = draw("marker", { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7,
    markerHeight: 7, orient: "auto-start-reverse", markerUnits: "userSpaceOnUse" }, view);
  draw("path", { d: "M0 0L8 4L0 8z", class: "arrow" }, marker);
  fill(ROOT, block, view, 0, 0);
  mark();
}

function fill(index, block, group, left, top) {
  for (const edge of own[index]) connect(edge, block, group);
  label(index, block, group);
  for (const [child, place] of block.boxes) {
    const size = block.inner.get(child);
    const element = draw("g", { transform: `translate(${place.x} ${place.y})` }, group);
    drawn.set(child, { element, x: left + place.x, y: top + place.y, ...size });
    outline(child, size, element);
    if (open[child]) fill(child, size, element, left + place.x, top + place.y);
  }
}

function outline(index, size, element) {
  const box = boxes[index];
  const block = box.kind === "block";
  element.setAttribute("class", block ? "box block" : "box");
  element.setAttribute("tabindex", 0);
  element.setAttribute("role", "button");
  element.setAttribute("aria-label", `${box.path || box.name}, ${box.op}, output ${shape(box)}`);
  element.dataset.index = index;
  if (block) element.setAttribute("aria-expanded", open[index]);
  draw("title", {}, element, [box.path || box.name, `${box.op}  ${shape(box)}`,
    box.parameters ? `${count(box.parameters)} parameters` : "",
    box.times > 1 ? `runs ${box.times} times with the same weights` : ""].filter(Boolean).join("\n"));
  const round = { rx: block ? 9 : 7 };
  if (block && !open[index])
    draw("rect", { class: "stack", x: 4, y: 4, width: size.width, height: size.height, ...round }, element);
  draw("rect", { class: "body", width: size.width, height: size.height, ...round }, element);
  if (!block) draw("rect", { x: 0, y: 0, width: 5, height: size.height, rx: 2.5, fill: colour(box.kind) }, element);
  const sign = block ? (open[index] ? "▾ " : "▸ ") : "";
  if (open[index]) {
    const text = draw("text", { x: 12, y: 20 }, element);
    const [name, op] = shortenBoth(sign + box.name + times(box), NAME, box.op, SUB, size.width - 32, 0.4);
    draw("tspan", { class: "name" }, text, name);
    draw("tspan", { class: "sub", dx: 8 }, text, op);
    return;
  }
  const middle = size.width / 2 + (block ? 0 : 2), room = size.width - (block ? 14 : 20);
  draw("text", { class: "name", x: middle, y: 19, "text-anchor": "middle" }, element,
    shortenBoth(sign + box.name, NAME, times(box), NAME, room, 0.3).join(""));
  draw("text", { class: "sub", x: middle, y: 34, "text-anchor": "middle" }, element, shorten(about(index, room), room, SUB));
}

// What stands below a box's name; where it is too long, a number goes without its word.
function about(index, room) {
  const box = boxes[index];
  if (box.kind === "input" || box.kind === "output") return box.kind;
  const what = box.op === box.name ? "" : box.op;
  const [number, word] = box.kind === "block" ? plural(inside(index), "layer").split(" ")
    : box.parameters ? [short(box.parameters), "parameters"] : ["", ""];
  const whole = [what, `${number} ${word}`.trim()].filter(Boolean).join(" · ");
  if (length(whole, SUB) <= room || !what || !number) return whole || box.kind;
  return shortenBoth(what, SUB, ` · ${number}`, SUB, room, 0.4).join("");
}

const times = (box) => box.times > 1 ? ` ×${box.times}` : "";

const plural = (number, what) => `${count(number)} ${what}${number === 1 ? "" : "s"}`;

function inside(index) {
  return children[index].reduce((sum, child) => sum + (boxes[child].kind === "block" ? inside(child) : 1), 0);
}

function connect(edge, block, group) {
  const line = draw("path", { class: "edge", d: upwards(edge, block) ? loop(edge, block) : route(edge, block) }, group);
  if (edge.end !== BORDER) line.setAttribute("marker-end", "url(#tip)");
  line.dataset.start = edge.start;
  line.dataset.end = edge.end;
}

function curve([[x, y], ...points]) {
  let path = `M${x},${y}`;
  for (const [toX, toY] of points) {
    const half = (y + toY) / 2;
    path += x === toX ? `L${toX} ${toY}` : `C${x} ${half} ${toX} ${half} ${toX} ${toY}`;
    [x, y] = [toX, toY];
  }
  return path;
}

function route(edge, block) {
  const points = edge.bends.flatMap((_, place) => {
    const bend = block.bends.get(edge)[place];
    return [[bend.x, bend.top], [bend.x, bend.bottom]];
  });
  if (edge.start !== BORDER) {
    const place = block.boxes.get(edge.start), size = block.inner.get(edge.start);
    points.unshift([place.x + size.width / 2, place.y + size.height]);
  } else points.splice(0, 1);
  if (edge.end !== BORDER) {
    const place = block.boxes.get(edge.end), size = block.inner.get(edge.end);
    points.push([place.x + size.width / 2, place.y]);
  } else points.splice(-1, 1);
  return curve(points);
}

// Whether an edge runs back to a layer that is used again.
function upwards(edge, block) {
  return edge.start !== BORDER && edge.end !== BORDER
    && block.boxes.get(edge.end).y < block.boxes.get(edge.start).y;
}

// From the top of a box through the bends up to the bottom of another; else beside the two.
function loop(edge, block) {
  const [from, to] = [edge.start, edge.end].map((end) => ({ ...block.boxes.get(end), ...block.inner.get(end) }));
  const bends = block.bends.get(edge);
  if (!bends.length) {
    const [x, y] = [from.x + from.width, from.y + from.height / 2], [toX, toY] = [to.x + to.width, to.y + to.height / 2];
    const out = Math.max(x, toX) + 20;
    return `M${x} ${y}C${out} ${y} ${out} ${toY} ${toX} ${toY}`;
  }
  const side = (box, bend) => box.x + box.width * (bend.x < box.x + box.width / 2 ? 0.25 : 0.75);
  return curve([[side(from, bends[0]), from.y], ...bends.flatMap((bend) => [[bend.x, bend.bottom], [bend.x, bend.top]]),
    [side(to, bends.at(-1)), to.y + to.height]]);
}

// The size of what a box gives, where its edges leave room: beside them, else between them.
function label(index, block, group) {
  const starts = own[index].filter((edge) => edge.start !== BORDER);
  for (const start of new Set(starts.map((edge) => edge.start))) {
    const place = block.boxes.get(start), { width, height } = block.inner.get(start);
    const x = place.x + width / 2, y = place.y + height;
    const turns = starts.filter((edge) => edge.start === start).map((edge) => {
      const bend = block.bends.get(edge)[0], end = block.boxes.get(edge.end);
      return (bend ? bend.x : end.x + block.inner.get(edge.end).width / 2) - x;
    });
    const [left, right] = [turns.some((turn) => turn < -8), turns.some((turn) => turn > 8)];
    const at = left && right ? [x, y + 29, "middle"] : right ? [x - 6, y + 15, "end"] : [x + 6, y + 15, "start"];
    draw("text", { class: "size", x: at[0], y: at[1], "text-anchor": at[2] }, group, cut(sizes(boxes[start]), 26));
  }
}

// --- looking around -----------------------------------------------------------------------------

function look() {
  view.setAttribute("transform", `translate(${camera.x} ${camera.y}) scale(${camera.scale})`);
}

// The scale at which all of the graph is seen.
function whole() {
  return Math.min(canvas.clientWidth / (extent.width + 20), canvas.clientHeight / (extent.height + 20));
}

function fit() {
  const { clientWidth: width, clientHeight: height } = canvas;
  camera.scale = Math.min(1.15, whole());
  camera.x = (width - extent.width * camera.scale) / 2;
  camera.y = (height - extent.height * camera.scale) / 2;
  look();
}

// At first as much as can be read: the whole graph where it fits, else its top.
function begin() {
  fit();
  if (camera.scale >= 0.75) return;
  const width = canvas.clientWidth;
  camera.scale = Math.max(camera.scale, Math.min(0.9, width / (extent.width + 20)));
  camera.x = (width - extent.width * camera.scale) / 2;
  camera.y = 8;
  look();
}

function zoom(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const scale = Math.max(Math.min(0.05, whole()), Math.min(4, camera.scale * factor));
  camera.x = x - (x - camera.x) * scale / camera.scale;
  camera.y = y - (y - camera.y) * scale / camera.scale;
  camera.scale = scale;
  look();
}

function centre(index) {
  const place = drawn.get(index);
  if (!place) return;
  camera.scale = Math.max(camera.scale, 0.7);
  camera.x = canvas.clientWidth / 2 - (place.x + place.width / 2) * camera.scale;
  camera.y = canvas.clientHeight / 2 - (place.y + Math.min(place.height, 300) / 2) * camera.scale;
  look();
}

function fold(index, how = !open[index]) {
  const before = drawn.get(index);
  open[index] = how;
  paint();
  const after = drawn.get(index);
  if (before && after) {  // the block stays under the pointer
    camera.x += (before.x + before.width / 2 - after.x - after.width / 2) * camera.scale;
    camera.y += (before.y - after.y) * camera.scale;
    look();
  }
}

function foldAll(how) {
  boxes.forEach((box, index) => { if (box.kind === "block") open[index] = how || index === ROOT; });
  paint();
  begin();
}

let drag = null;
canvas.addEventListener("pointerdown", (event) => {
  drag = { x: event.clientX, y: event.clientY, moved: false };
});
addEventListener("pointermove", (event) => {
  if (!drag) return;
  const [x, y] = [event.clientX - drag.x, event.clientY - drag.y];
  if (!drag.moved && Math.hypot(x, y) < 4) return;
  drag = { x: event.clientX, y: event.clientY, moved: true };
  canvas.classList.add("moving");
  camera.x += x;
  camera.y += y;
  look();
});
addEventListener("pointerup", () => {
  canvas.classList.remove("moving");
  setTimeout(() => { drag = null; });
});
canvas.addEventListener("click", (event) => {
  const hit = event.target.closest(".box");
  if (hit && !drag?.moved) press(Number(hit.dataset.index));
});
canvas.addEventListener("wheel", (event) => {
  const corner = canvas.getBoundingClientRect();
  const down = event.deltaY > 0 && !event.shiftKey, up = event.deltaY < 0 && !event.shiftKey;
  const bottom = camera.y + extent.height * camera.scale;
  const ctrl = event.ctrlKey || event.metaKey;
  if (!ctrl && (down && bottom <= canvas.clientHeight || up && camera.y >= 0)) return;  // the page scrolls
  event.preventDefault();
  if (ctrl) {
    zoom(Math.exp(-event.deltaY / 200), event.clientX - corner.left, event.clientY - corner.top);
  } else {
    camera.x -= event.shiftKey ? event.deltaY : event.deltaX;
    camera.y -= event.shiftKey ? 0 : event.deltaY;
    look();
  }
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  const hit = event.target.closest(".box");
  if (hit && (event.key === "Enter" || event.key === " ")) {
    const index = Number(hit.dataset.index);
    press(index);
    drawn.get(index)?.element.focus({ preventScroll: true });
  } else if (moves[event.key]) {
    camera.x += moves[event.key][0];
    camera.y += moves[event.key][1];
    look();
  } else if (event.key === "+" || event.key === "=") zoom(1.25);
  else if (event.key === "-") zoom(0.8);
  else if (event.key === "0") fit();
  else return;
  event.preventDefault();
});
find("closer").onclick = () => zoom(1.25);
find("farther").onclick = () => zoom(0.8);
find("fit").onclick = fit;
find("unfold").onclick = () => foldAll(true);
find("fold").onclick = () => foldAll(false);
addEventListener("beforeprint", fit);

// --- choosing a layer ---------------------------------------------------------------------------

function press(index) {
  if (boxes[index].kind === "block") fold(index);
  select(index, { row: true });
}

function select(index, { row = false, node = false } = {}) {
  selected = index;
  if (node) {
    let shut = false;
    for (let above = boxes[index].parent; above > ROOT; above = boxes[above].parent)
      if (!open[above]) { open[above] = true; shut = true; }
    if (shut) paint();
    centre(index);
  }
  mark();
  describe(index);
  if (row) rowOf.get(index)?.scrollIntoView({ block: "nearest" });
}

function mark() {
  for (const [index, { element }] of drawn) element.classList.toggle("selected", index === selected);
  for (const line of view.querySelectorAll(".edge"))
    line.classList.toggle("lit", selected !== null
      && (Number(line.dataset.start) === selected || Number(line.dataset.end) === selected));
  for (const [index, line] of rowOf) line.classList.toggle("selected", index === selected);
}

function describe(index) {
  const box = boxes[index];
  find("chosen").textContent = box.path || box.name;
  const rows = [["kind", box.kind === box.op ? box.kind : `${box.op}${box.kind === "block" ? " (block)" : ` (${box.kind})`}`],
    ["output", shape(box)]];
  if (box.times > 1) rows.push(["runs", `${box.times} times with the same weights`]);
  if (box.kind !== "input" && box.kind !== "output") {
    rows.push(["parameters", share(box.parameters, report.parameters)],
      ["forward", share(box.macs, report.macs, " MACs")],
      ["backward", `${count(box.backward)} MACs`], ["activations", `${bytes(box.bytes)} per example`]);
  }
  pairs(find("about"), rows);
  if (box.line) {
    make("dt", "defined in", {}, find("about"));
    const cell = make("dd", null, {}, find("about"));
    cell.append(link(box, `${box.source.split("/").at(-1)}, line ${box.line}`));
  }
  field(box);
}

function share(part, whole, unit = "") {
  const text = `${count(part)}${unit}`;
  return part && whole ? `${text} (${(100 * part / whole).toFixed(part === whole ? 0 : 1)} %)` : text;
}

// --- the receptive field ------------------------------------------------------------------------

function field(box) {
  const said = find("field"), place = find("plane");
  place.replaceChildren();
  const fields = box.fields;
  if (!fields.length) {
    said.textContent = report.images.length ? "Not defined for this box: choose a layer." : "No input of the model is a picture.";
    return;
  }
  if (fields.length > 1) choice(fields, (one) => over(box, one, said, plane));
  const plane = make("div", null, {}, place);
  over(box, fields[0], said, plane);
}

// Buttons for the pictures that a layer sees.
function choice(fields, chosen) {
  const buttons = make("div", null, { class: "buttons" }, find("plane"));
  const all = fields.map((one) => {
    const button = make("button", report.images[one.image].name, {}, buttons);
    button.onclick = () => { chosen(one); all.forEach((other) => other.setAttribute("aria-pressed", other === button)); };
    return button;
  });
  all.forEach((button, index) => button.setAttribute("aria-pressed", index === 0));
}

// What a layer sees of one picture, unit by unit where its units lie in rows and columns.
function over(box, seen, said, place) {
  place.replaceChildren();
  const image = report.images[seen.image];
  const svg = sketch(image, place);
  if (seen.whole) {
    said.textContent = `Every unit sees the whole input: ${image.height}×${image.width}.`;
    return;
  }
  if (seen.rows === null) {
    said.textContent = `Each unit sees ${seen.size} of ${image.height}×${image.width}; stride ${seen.stride}. Its units do not lie in rows and columns.`;
    svg.querySelector(".sees").style.display = "none";
    return;
  }
  const spans = [report.spans[seen.rows], report.spans[seen.columns]];
  const counts = spans.map(([first]) => first.length);
  const unit = counts.map((number) => Math.floor((number - 1) / 2));
  const controls = ["row", "column"].map((name, axis) => {
    const label = make("label", name, {}, place);
    const input = make("input", null, { type: "range", min: 0, max: counts[axis] - 1, value: unit[axis], "aria-label": `${name} of the unit` }, label);
    const shown = make("output", String(unit[axis]), {}, label);
    input.oninput = () => { unit[axis] = Number(input.value); show(); };
    return { input, shown };
  });
  const point = (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    [at.y, at.x].forEach((value, axis) => { unit[axis] = nearest(spans[axis], value - 0.5); });
    show();
  };
  svg.onpointerdown = (event) => { svg.setPointerCapture(event.pointerId); point(event); };
  svg.onpointermove = (event) => { if (event.buttons) point(event); };
  function show() {
    controls.forEach(({ input, shown }, axis) => { input.value = unit[axis]; shown.textContent = unit[axis]; });
    const [rows, columns] = spans.map(([first, last], axis) => ({ low: first[unit[axis]], high: last[unit[axis]] }));
    const empty = rows.low > rows.high || columns.low > columns.high;
    const part = empty ? "nothing but padding" : `${rows.high - rows.low + 1}×${columns.high - columns.low + 1}: `
      + `rows ${rows.low} to ${rows.high}, columns ${columns.low} to ${columns.high}`;
    said.textContent = `Unit (${unit[0]}, ${unit[1]}) of ${counts[0]}×${counts[1]} sees ${part}. Field ${seen.size}, stride ${seen.stride}.`;
    if (!empty) rectangle(svg, ".sees", rows.low, rows.high, columns.low, columns.high);
    svg.querySelector(".sees").style.display = empty ? "none" : "";
  }
  show();
}

// The unit whose middle is nearest to a position of the input.
function nearest([first, last], position) {
  let best = 0, least = Infinity;
  first.forEach((low, unit) => {
    const away = Math.abs((low + last[unit]) / 2 - position);
    if (low <= last[unit] && away < least) [best, least] = [unit, away];
  });
  return best;
}

function sketch(image, place) {
  const [high, wide] = [image.height * 0.02, image.width * 0.02];
  const svg = draw("svg", { viewBox: `${-wide} ${-high} ${image.width + 2 * wide} ${image.height + 2 * high}`,
    role: "img", "aria-label": `The input, ${image.height} by ${image.width}, with the field of the unit` }, place);
  draw("rect", { class: "plane", width: image.width, height: image.height }, svg);
  draw("rect", { class: "sees", width: image.width, height: image.height }, svg);
  return svg;
}

function rectangle(svg, name, top, bottom, left, right) {
  const element = svg.querySelector(name);
  for (const [key, value] of Object.entries({ x: left, y: top, width: Math.max(0, right - left + 1), height: Math.max(0, bottom - top + 1) }))
    element.setAttribute(key, value);
}

function fieldText(box) {
  const texts = box.fields.map((one) => one.whole ? "all" : `${one.size} / ${one.stride}`);
  if (new Set(texts).size < 2) return texts[0] || "";
  return box.fields.map((one, index) => `${report.images[one.image].name} ${texts[index]}`).join(", ");
}

function fieldSize(box) {
  const [one] = box.fields;
  return !one ? 0 : one.whole ? Infinity : parseInt(one.size, 10) || Infinity;
}

// --- the layer table ----------------------------------------------------------------------------

const rowOf = new Map();
const COLUMNS = [["layer", (b) => b.path], ["op", (b) => b.op], ["output", (b) => b.bytes, shape],
  ["parameters", (b) => b.parameters], ["MACs", (b) => b.macs], ["backward", (b) => b.backward],
  ["activations", (b) => b.bytes, (b) => bytes(b.bytes)],
  ["field / stride", fieldSize, fieldText], ["line", (b) => b.line]];
const TEXTS = new Set(["layer", "op", "output"]);
const BARS = new Set(["parameters", "MACs", "activations"]);

function table() {
  const head = make("tr", null, {}, make("thead", null, {}, find("layers")));
  const body = make("tbody", null, {}, find("layers"));
  const layers = boxes.map((box, index) => index).filter((index) => !["block", "input", "output"].includes(boxes[index].kind));
  const most = Object.fromEntries(COLUMNS.map(([name, value]) => [name, Math.max(1, ...layers.map((i) => Number(value(boxes[i])) || 0))]));
  for (const index of layers) {
    const box = boxes[index];
    const row = make("tr", null, { tabindex: 0 }, body);
    row.dataset.index = index;
    for (const [name, value, text] of COLUMNS) {
      const cell = make("td", null, TEXTS.has(name) ? {} : { class: "number" }, row);
      if (name === "layer") make("span", null, { class: "mark" }, cell).style.background = colour(box.kind);
      if (name === "line" && box.line) cell.append(link(box, String(box.line)));
      else cell.append(text ? text(box) : typeof value(box) === "number" ? (value(box) ? count(value(box)) : "") : value(box));
      if (BARS.has(name) && value(box)) make("i", null, { class: "share" }, cell).style.width = `${100 * value(box) / most[name]}%`;
    }
    row.onclick = () => select(index, { node: true });
    row.onkeydown = (event) => { if (event.key === "Enter") select(index, { node: true }); };
    rowOf.set(index, row);
  }
  for (const [name, value] of COLUMNS) {
    const cell = make("th", null, { scope: "col", class: TEXTS.has(name) ? "" : "number" }, head);
    make("button", name, { title: `Sort by ${name}` }, cell).onclick = () => sort(head, body, cell, name, value);
  }
}

function sort(head, body, cell, name, value) {
  const down = cell.ariaSort ? cell.ariaSort === "ascending" : !TEXTS.has(name);
  for (const other of head.children) other.ariaSort = null;
  cell.ariaSort = down ? "descending" : "ascending";
  const sign = down ? -1 : 1;
  const rows = [...body.children].sort((a, b) => {
    const [x, y] = [a, b].map((row) => value(boxes[row.dataset.index]));
    return sign * (typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true }))
      || a.dataset.index - b.dataset.index;
  });
  body.append(...rows);
}

// --- shares -------------------------------------------------------------------------------------

const MEASURES = [["FLOPs", (b) => 2 * b.macs, short], ["Backward FLOPs", (b) => 2 * b.backward, short],
  ["Parameters", (b) => b.parameters, short], ["Activations", (b) => b.bytes, bytes]];
const MOST_BARS = 14;

function shares([name, value, text]) {
  for (const button of find("measures").children) button.setAttribute("aria-pressed", button.textContent === name);
  const place = find("shares");
  place.replaceChildren();
  const leaves = boxes.filter((box) => !["block", "input", "output"].includes(box.kind));
  const total = leaves.reduce((sum, box) => sum + value(box), 0);
  bars(place, "by layer", leaves.map((box) => [box.path, value(box), box.kind, boxes.indexOf(box)]), total, text);
  bars(place, "by block", blocks().map((index) => [boxes[index].path, value(boxes[index]), boxes[index].kind, index]), total, text);
  const kinds = new Map();
  for (const box of leaves) {
    const seen = kinds.get(box.op) || [box.op, 0, box.kind, null];
    kinds.set(box.op, [seen[0], seen[1] + value(box), seen[2], null]);
  }
  bars(place, "by operator", [...kinds.values()], total, text);
}

// The children of the model, those of a block without a definition of its own in its stead.
function blocks(index = ROOT) {
  return children[index].flatMap((child) => {
    const box = boxes[child];
    if (box.kind === "input" || box.kind === "output") return [];
    return box.kind === "block" && ["for", "repeat", ""].includes(box.op) ? blocks(child) : [child];
  });
}

function bars(place, title, rows, total, text) {
  const chart = make("div", null, {}, place);
  make("h3", title, {}, chart);
  const shown = rows.filter((row) => row[1]).sort((a, b) => b[1] - a[1]);
  const most = Math.max(1, ...shown.map((row) => row[1]));
  const rest = shown.slice(MOST_BARS);
  for (const [name, value, kind, index] of shown.slice(0, MOST_BARS)) {
    const row = make("div", null, { class: "share-row", title: `${name}: ${count(value)}` }, chart);
    make("span", name, {}, row);
    const bar = make("i", null, {}, make("span", null, { class: "track" }, row));
    bar.style.width = `${100 * value / most}%`;
    bar.style.background = kind === "block" ? "var(--accent)" : colour(kind);
    make("span", `${text(value)} · ${(100 * value / total).toFixed(1)}%`, {}, row);
    if (index !== null) { row.style.cursor = "pointer"; row.onclick = () => select(index, { node: true, row: true }); }
  }
  if (rest.length) make("p", `${count(rest.length)} more: ${text(rest.reduce((sum, row) => sum + row[1], 0))} together`, { class: "note" }, chart);
  if (!shown.length) make("p", "none", { class: "note" }, chart);
}

// --- memory -------------------------------------------------------------------------------------

function memory(step) {
  const chart = make("div", null, { class: "chart" }, find("memory"));
  make("h3", `${step.title}: peak of live values ${bytes(step.peak)}, arena ${bytes(step.arena)}`, {}, chart);
  const [wide, high] = [600, 170];
  const plot = make("div", null, { class: "plot" }, chart);
  const scale = make("div", null, { class: "scale" }, plot);
  const svg = draw("svg", { viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: "none", role: "img",
    "aria-label": `Live bytes over ${step.live.length} steps, peak ${bytes(step.peak)}, arena ${bytes(step.arena)}` }, plot);
  const most = Math.max(step.arena, step.peak, 1);
  const x = (at) => at * wide / step.live.length, y = (value) => high - 1 - value * (high - 12) / most;
  for (const value of ticks(most)) {
    draw("line", { class: "grid", x1: 0, x2: wide, y1: y(value), y2: y(value) }, svg);
    make("span", value ? bytes(value) : "0", {}, scale).style.top = `${100 * y(value) / high}%`;
  }
  draw("path", { class: "area", d: `M0 ${y(0)}${step.live.map((value, at) => `L${x(at)} ${y(value)}L${x(at + 1)} ${y(value)}`).join("")}L${wide} ${y(0)}z` }, svg);
  draw("line", { class: "arena", x1: 0, x2: wide, y1: y(step.arena), y2: y(step.arena) }, svg);
  draw("line", { class: "peak", x1: x(step.at + 0.5), x2: x(step.at + 0.5), y1: 0, y2: high }, svg);
  const cursor = draw("line", { class: "cursor", y1: 0, y2: high, visibility: "hidden" }, svg);
  const said = make("p", null, { class: "said" }, chart);
  const tell = (at, who) => { said.textContent = `${who} ${at + 1} of ${step.live.length}, ${step.steps[at]}: ${bytes(step.live[at])} live`; };
  const rest = () => { tell(step.at, "Peak at step"); cursor.setAttribute("visibility", "hidden"); };
  svg.onpointermove = (event) => {
    const corner = svg.getBoundingClientRect();
    const at = Math.max(0, Math.min(step.live.length - 1, Math.floor((event.clientX - corner.left) / corner.width * step.live.length)));
    cursor.setAttribute("x1", x(at + 0.5));
    cursor.setAttribute("x2", x(at + 0.5));
    cursor.setAttribute("visibility", "visible");
    tell(at, "Step");
  };
  svg.onpointerleave = rest;
  if (step.live.length) rest();
  make("p", `The arena (dashed) is what is reserved: ${bytes(step.arena - step.peak)} more than the peak, for gaps between values `
    + "that live at different times, and for alignment and a margin behind each value.", { class: "note" }, chart);
  const list = make("table", null, {}, chart);
  const head = make("tr", null, {}, make("thead", null, {}, list));
  for (const name of ["live at the peak", "shape", "bytes", "line"]) make("th", name, name === "bytes" || name === "line" ? { class: "number" } : {}, head);
  const body = make("tbody", null, {}, list);
  for (const tensor of step.tensors) {
    const row = make("tr", null, {}, body);
    make("td", tensor.label, {}, row);
    make("td", `[${tensor.shape.join(", ")}]`, {}, row);
    make("td", bytes(tensor.bytes), { class: "number" }, row);
    const own = tensor.source === report.sources[0]?.name || !tensor.source;
    const place = tensor.line ? own ? String(tensor.line) : `${tensor.source}, ${tensor.line}` : "";
    make("td", null, { class: "number" }, row).append(link(tensor, place));
  }
  const total = (name, value) => {
    const row = make("tr", null, {}, body);
    for (const [text, kind] of [[name, ""], ["", ""], [bytes(value), "number"], ["", "number"]]) make("td", text, { class: kind }, row);
  };
  if (step.more) total(`${count(step.more)} more, together`, step.rest);
  total("peak: all of them", step.peak);
}

// Round numbers of bytes from nothing to `most`: three to five of them.
function ticks(most) {
  const apart = 2 ** Math.max(0, Math.ceil(Math.log2(most / 4)));
  return Array.from({ length: Math.floor(most / apart) + 1 }, (_, number) => number * apart);
}

// --- the source text ----------------------------------------------------------------------------

const lines = new Map();

function link(box, text) {
  const key = `${box.source}:${box.line}`;
  if (!report.sources.some((source) => source.name === box.source)) return document.createTextNode(text);
  const anchor = make("a", text, { href: "#texts", title: `Show ${key}` });
  anchor.onclick = (event) => {
    event.preventDefault();
    event.stopPropagation();
    const line = lines.get(key);
    if (!line) return;
    line.closest("details").open = true;
    for (const other of lines.values()) other.classList.remove("selected");
    line.classList.add("selected");
    line.scrollIntoView({ block: "center" });
  };
  return anchor;
}

function texts() {
  const place = find("texts");
  make("h2", "Source", {}, place);
  report.sources.forEach((source, number) => {
    const details = make("details", null, number ? {} : { open: "" }, place);
    make("summary", source.name, {}, details);
    const text = make("pre", null, {}, details);
    source.text.split("\n").forEach((line, at) => {
      lines.set(`${source.name}:${at + 1}`, make("span", line, { "data-line": at + 1 }, text));
    });
  });
}

// --- light and dark -----------------------------------------------------------------------------

// The rules of the dark theme hold where the system asks for it, until the reader says otherwise.
const darkRules = [...document.styleSheets[0].cssRules].find((rule) => rule.media?.mediaText.includes("dark"));
const system = matchMedia("(prefers-color-scheme: dark)");
let dark = system.matches;

function nameTheme() {
  find("theme").textContent = dark ? "Light" : "Dark";
}

find("theme").onclick = () => {
  dark = !dark;
  darkRules.media.mediaText = dark ? "screen" : "not all";
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  system.onchange = null;
  nameTheme();
};
system.onchange = () => { dark = system.matches; nameTheme(); };

// --- the page -----------------------------------------------------------------------------------

function header() {
  find("model").textContent = report.model;
  find("origin").textContent = report.file;
  const figures = [["Parameters", short(report.parameters), count(report.parameters)],
    ["MACs", short(report.macs), `${count(report.macs)} per example`],
    ["FLOPs", short(2 * report.macs), "2 per MAC"],
    ["Activations", bytes(report.activations), "all outputs, per example"],
    ...report.memory.map((step) => [`${step.name} memory`, bytes(step.arena), step.note])];
  for (const [name, value, note] of figures) {
    const card = make("div", null, {}, find("figures"));
    make("dt", name, {}, card);
    make("small", note, {}, make("dd", value, {}, card));
  }
  pairs(find("facts"), [["inputs", report.inputs.join(", ")], ["outputs", report.outputs.join(", ")],
    ...report.settings, ...report.notes.map((note) => ["note", note])]);
  find("counting").textContent = "1 MAC = 2 FLOPs; counts are per example; backward: gradients of weights and inputs";
  find("footer").textContent = `Lamina ${report.version}. This page loads nothing from anywhere.`;
}

function legend() {
  for (const kind of new Set(boxes.map((box) => box.kind))) {
    if (kind === "output") continue;
    const item = make("li", null, {}, find("legend"));
    make("i", null, {}, item).style.background = colour(kind);
    item.append(kind === "input" ? "input, output" : kind);
  }
}

nameTheme();
header();
legend();
table();
for (const measureOf of MEASURES) make("button", measureOf[0], {}, find("measures")).onclick = () => shares(measureOf);
shares(MEASURES[0]);
report.memory.forEach(memory);
if (!report.memory.length) make("p", report.no_memory, { class: "note" }, find("memory"));
texts();
paint();
begin();
select(report.first);

// What every live view shares. Text from a model reaches the page as text nodes only.

/** An element; children that are strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "style") Object.assign(node.style, value);
    else if (value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** The frame of a view: a shadow root with title, note, body and a line that is read aloud. */
function frame(element, data) {
  // The attribute keeps arrows and letters from driving the notebook's cells.
  const outer = el("div", { class: "neox-live", "data-lm-suppress-shortcuts": "true" });
  const body = el("div", { class: "body" });
  const status = el("p", { class: "status", role: "status", "aria-live": "polite" });
  const heading = el("h3", { dir: "auto" }, data.title);
  const notes = (data.notes || []).map((note) => el("p", { class: "note" }, note));
  const section = el("section", { "aria-label": data.title }, heading, ...notes, body, status);
  outer.attachShadow({ mode: "open" }).append(el("style", {}, STYLE), section);
  element.replaceChildren(outer);
  standOn(getComputedStyle(section).backgroundColor);
  section.style.setProperty("--less", css(signed(1 / 6))); // the middle of each half
  section.style.setProperty("--more", css(signed(5 / 6)));
  steady(status);
  return { body, say: (text) => (status.textContent = text) };
}

/**
 * Let a node grow with what it says but not shrink. Else what stands below moves under the pointer,
 * which then points at something else, which says something else, without end.
 */
function steady(node) {
  let width = 0;
  new ResizeObserver(() => {
    if (!node.offsetWidth) return; // hidden
    if (node.offsetWidth !== width) node.style.minHeight = ""; // other lines: begin anew
    width = node.offsetWidth;
    node.style.minHeight = `${Math.ceil(node.getBoundingClientRect().height)}px`;
  }).observe(node);
  return node;
}

/**
 * One tab stop for a group of items. Arrows move within rows of `columns` (without, up and down
 * are back and forth), Enter, space or a click locks, Esc unlocks; looking at an item shows it.
 */
function roving(group, items, columns, { show, lock, unlock }) {
  const places = new Map(items.map((item, place) => [item, place]));
  const steps = {
    ArrowRight: 1,
    ArrowLeft: -1,
    ArrowDown: columns || 1,
    ArrowUp: -(columns || 1),
    Home: -Infinity,
    End: Infinity,
  };
  const find = (event) => {
    for (let node = event.target; node && node !== group; node = node.parentNode)
      if (places.has(node)) return places.get(node);
    return undefined;
  };
  const on = (name, act) =>
    group.addEventListener(name, (event) => {
      const place = find(event);
      if (place !== undefined) act(place, event);
    });
  let stop = 0;
  items.forEach((item, place) => (item.tabIndex = place === stop ? 0 : -1));
  on("pointerover", show);
  on("click", lock);
  on("focusin", (place) => {
    items[stop].tabIndex = -1;
    stop = place;
    items[stop].tabIndex = 0;
    show(place);
  });
  on("keydown", (place, event) => {
    const { key } = event;
    if (key === "Enter" || key === " ") lock(place);
    else if (key === "Escape") unlock();
    else if (key in steps) {
      const end = key === "Home" ? 0 : items.length - 1;
      const target = Number.isFinite(steps[key]) ? place + steps[key] : end;
      if (items[target]) items[target].focus();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

/** What is shown: the item last looked at, unless one is locked. `draw(place, locked)` shows it. */
function selection(draw, first) {
  const state = { place: first, locked: false };
  const set = (place, locked) => {
    state.place = place;
    state.locked = locked;
    draw(place, locked);
  };
  return {
    state,
    show: (place) => state.locked || set(place, false),
    lock: (place) => set(place, !(state.locked && state.place === place)),
    unlock: () => set(state.place, false),
  };
}

/** The bytes of a text in which each character stands for one. */
function decoded(text) {
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < bytes.length; at++) bytes[at] = text.charCodeAt(at);
  return bytes;
}

/** Bytes from base64 of a deflated block, or from the buffer a widget received. */
async function unpack(block) {
  const packed =
    typeof block === "string"
      ? decoded(atob(block))
      : new Uint8Array(block.buffer || block, block.byteOffset || 0, block.byteLength);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// Colours as [red, green, blue] from 0 to 255. Viridis for amounts, or white to its middle under
// text; blue-white-orange for differences; Okabe and Ito's set for kinds: safe for colour-blind
// readers. What a pointer is at is outlined, never coloured.

const hex = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
const css = (colour) => `rgb(${colour.map(Math.round).join(" ")})`;
const mix = (a, b, share) => a.map((channel, at) => channel + (b[at] - channel) * share);

/** The colour at `share` (0 to 1) of a scale through evenly spaced stops. */
function ramp(stops) {
  const colours = stops.map((stop) => (typeof stop === "string" ? hex(stop) : stop));
  return (share) => {
    const at = Math.min(1, Math.max(0, share)) * (colours.length - 1);
    const below = Math.min(Math.floor(at), colours.length - 2);
    return mix(colours[below], colours[below + 1], at - below);
  };
}

const viridis = ramp(
  "#440154 #48186a #472d7b #424086 #3b528b #33638d #2c728e #26828e #21918c #1fa088 #28ae80 #3fbc73 #5ec962 #84d44b #addc30 #d8e219 #fde725".split(" "),
);
const diverging = ramp("#08306b #2171b5 #9ecae1 #ffffff #fdbe7d #e66101 #7f2704".split(" "));
const teals = ramp("#f4faf9 #b9dfdc #6bbab5 #21918c #0c4a48".split(" "));
const [LESS, MORE] = ["#2171b5", "#e66101"].map(hex);

// Nothing, and no difference, have the colour of the page. On dark paper the same hues therefore
// run the other way: the least is dark, the most is bright.
let ground = [255, 255, 255];
let signed = diverging;
let amount = teals;

/** Take the colours that fit a page's background, as the browser computed it. */
function standOn(background) {
  const [red, green, blue] = (background.match(/[\d.]+/g) || []).map(Number);
  if (blue === undefined || ink([red, green, blue]) === BLACK) return; // light, as they are
  ground = [red, green, blue];
  amount = ramp([ground, "#0f5450", "#21918c", "#6bbab5", "#b9dfdc"]);
  const less = ramp([ground, "#2166a5", "#5aa6d8", "#c6dff0"]);
  const more = ramp([ground, "#a8480a", "#ef8430", "#fdd3a6"]);
  signed = (share) => (share < 0.5 ? less(1 - 2 * share) : more(2 * share - 1));
}

/** What carries something, in the colour of its kind: `strength` from 0 to 1. */
const tint = (colour, strength) => mix(ground, colour, 0.15 + 0.5 * strength);

/** The tint of what speaks for (more than 0) or against; `most` is the largest of the picture. */
const signedTint = (value, most) =>
  Math.abs(value) > most / 100 ? tint(value < 0 ? LESS : MORE, Math.abs(value) / most) : null;

const DEEPEST = 0.55; // of the scale of amounts, for a token of probability 1

const BLUE = hex("#56b4e9");
const ORANGE = hex("#e69f00");
const BLACK = "#000000"; // only with it does one of the two always reach 4.5 to 1

/** Black or white, whichever reads better on a colour (contrast as in WCAG 2.1). */
function ink(colour) {
  const linear = colour.map((channel) => {
    const c = channel / 255;
    return c > 0.04045 ? ((c + 0.055) / 1.055) ** 2.4 : c / 12.92;
  });
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 ? BLACK : "#ffffff";
}

/** Colour an element's background and let its text be read on it; without a colour, neither. */
function fill(node, colour) {
  node.style.background = colour ? css(colour) : "";
  node.style.color = colour ? ink(colour) : "";
}

/** How a head is called: L3H0 where there is little room, "layer 3, head 0" in a sentence. */
const headName = (layer, head) => `L${layer}H${head}`;
const headWords = (layer, head) => `layer ${layer}, head ${head}`;

/** A token inside a sentence, kept from turning its neighbours around. */
const isolate = (text) => `\u2068${text}\u2069`;

/** What is said of an item, and whether it is locked. */
const ending = (text, locked) =>
  locked ? `${text}${text.endsWith(".") ? "" : "."} Locked; Esc unlocks.` : text;

/** What stands in the corner of a table: in one line, or in two where there is little room. */
const axisNames = (down, across) => `${down}\u00a0↓\u00a0╲ ${across}\u00a0→`;

/** How wide a drawing becomes: `most`, or less where there is less room; its letters keep their size. */
const room = (body, most) => Math.max(Math.min(280, most), Math.min(most, body.clientWidth || most));

/** Rows of a name, a bar of `share` (0 to 1) and a printed value. */
function bars(rows, colour) {
  const cells = rows.map(([name, share, value]) => {
    const bar = el("i", { style: { width: `${100 * Math.max(0, Math.min(1, share))}%` } });
    if (colour) bar.style.background = css(colour);
    return el("tr", {}, el("th", { dir: "auto" }, name), el("td", {}, value), el("td", {}, bar));
  });
  return el("table", { class: "bars" }, el("tbody", {}, ...cells));
}

/** A table that scrolls by itself, with the selected cell in sight however wide it is. */
function scrolling(children, chosen) {
  const node = el("div", { class: "scroll" }, ...children);
  const reveal = () => {
    const cell = chosen();
    if (!cell || !cell.isConnected) return;
    const [at, room] = [cell.getBoundingClientRect(), node.getBoundingClientRect()];
    const name = cell.parentNode.firstChild.getBoundingClientRect(); // stays where it is, on top
    if (at.right > room.right) node.scrollLeft += at.right - room.right + 4;
    else if (at.left < name.right) node.scrollLeft -= name.right - at.left + 4;
  };
  new ResizeObserver(reveal).observe(node);
  return { node, reveal: () => queueMicrotask(reveal) }; // once every panel has its new content
}

// What plots share.

/** An element of a drawing. */
function svg(tag, attributes) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** About `count` round numbers between two. */
function ticks(least, most, count) {
  const rough = (most - least) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((lead) => lead * power >= rough);
  const found = [];
  for (let n = Math.ceil(least / step); n * step <= most + step * 1e-9; n++) found.push(n * step);
  return found;
}

/** What stands at ticks, as in pictures: as many digits as tell them apart. */
function tickTexts(values) {
  const most = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  const step = values.length > 1 ? values[1] - values[0] : most;
  if (!most || !step) return values.map(() => "0");
  const [fine, coarse] = [step, most].map((size) => Math.floor(Math.log10(size) + 1e-9));
  const plain = coarse >= -4 && coarse < 6;
  const digits = Math.min(20, Math.max(0, plain ? -fine : coarse - fine));
  return values.map((value) => {
    const zero = Math.abs(value) < step * 1e-9;
    const text = plain ? (zero ? 0 : value).toFixed(digits) : value.toExponential(digits);
    return (zero && !plain ? "0" : text).replace("e+", "e").replaceAll("-", "−");
  });
}

const print = (value) => String(Number(value.toPrecision(4))).replace("-", "−");

// Maps of attention: weights out of bytes, colours, one head large with names on both sides.

/** The panels row by row: a layer's heads, then their mean if there are several. */
function panelsOf(data, bytes) {
  const count = data.pieces.length;
  const size = data.causal ? (count * (count + 1)) / 2 : count * count;
  const panel = (layer, head, weights, measures) => ({
    layer,
    head,
    name: head === "mean" ? `layer ${layer}, mean of heads` : headWords(layer, head),
    weights,
    measures,
    weight: (query, key) =>
      data.causal && key > query ? 0 : (weights[place(data, query, key)] / 255) * data.top,
  });
  return data.layers.flatMap((layer, row) => {
    const heads = data.heads.map((head, column) => {
      const start = (row * data.heads.length + column) * size;
      return panel(layer, head, bytes.subarray(start, start + size), data.measures[row][column]);
    });
    if (heads.length === 1) return heads;
    const sum = new Float64Array(size);
    for (const { weights } of heads) for (let at = 0; at < size; at++) sum[at] += weights[at];
    const mean = new Uint8Array(size); // which cuts off what stands behind the point
    for (let at = 0; at < size; at++) mean[at] = sum[at] / heads.length + 0.5;
    const average = [0, 1, 2].map(
      (which) => heads.reduce((sum, head) => sum + head.measures[which], 0) / heads.length,
    );
    return [...heads, panel(layer, "mean", mean, average)];
  });
}

/** Where the weight from a query to a key stands among a head's bytes. */
const place = (data, query, key) =>
  data.causal ? (query * (query + 1)) / 2 + key : query * data.pieces.length + key;

/** A head's entropy and shares in words. */
function measured({ measures: [entropy, first, previous] }) {
  const percent = (share) => `${Math.round(100 * share)} %`;
  if (entropy === null) return "one token";
  return `entropy ${entropy.toFixed(2)} bits, ${percent(first)} on the first token, ${percent(previous)} on the previous`;
}

const pixel = (colour) => {
  const [red, green, blue] = colour.map(Math.round);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
};
const weightColour = (share) => viridis(Math.sqrt(share)); // most weights of a long text are small
const PIXELS = new Uint32Array(256).map((_, byte) => pixel(weightColour(byte / 255)));

/** The colours of weights from 0 to the top, as they lie along a bar: that of the cells. */
function rampBar(colour = weightColour) {
  const stops = Array.from({ length: 21 }, (_, at) => css(colour(at / 20))).join(", ");
  return el("i", { style: { background: `linear-gradient(90deg, ${stops})` } });
}

/** A head's map, one pixel the largest of `factor` x `factor` weights; what is not, transparent. */
function paint(canvas, weights, data, factor, pixels = PIXELS) {
  const count = data.pieces.length;
  const side = Math.ceil(count / factor);
  const largest = new Uint16Array(side * side);
  for (let query = 0, at = 0; query < count; query++) {
    const row = Math.floor(query / factor) * side;
    const keys = data.causal ? query + 1 : count;
    for (let key = 0; key < keys; key++, at++) {
      const target = row + Math.floor(key / factor);
      if (weights[at] >= largest[target]) largest[target] = weights[at] + 1;
    }
  }
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  const shown = new Uint32Array(image.data.buffer);
  largest.forEach((byte, at) => (shown[at] = byte ? pixels[byte - 1] : 0));
  context.putImageData(image, 0, 0);
}

/** One head large, with names on both sides and a cross at what is pointed at. */
function largeMap(data, point, { pick, most = 400, scale = rampBar(), ends } = {}) {
  const count = data.pieces.length;
  const side = Math.max(160, Math.min(most, count * 26));
  const cell = side / count;
  const every = Math.ceil(13 / cell);
  const canvas = el("canvas", { style: { width: `${side}px`, height: `${side}px` } });
  const row = el("div", { class: "cross" });
  const column = el("div", { class: "cross" });
  const caption = el("p", { class: "caption" });
  const field = el("div", { class: "field" }, canvas, row, column);
  field.style.width = field.style.height = `${side}px`;
  // Names get the room of the longest; cut where that is too much.
  const room = Math.min(94, 10 + 7 * Math.max(...data.pieces.map((piece) => piece.length + 2 * (every > 1))));
  const names = (which) =>
    data.pieces.flatMap((piece, at) => {
      if (at % every) return [];
      const shown = every > 1 ? `${at + data.first} ${isolate(piece)}` : piece;
      const start = `${at * cell}px`;
      const size = `${Math.max(cell, 13)}px`;
      const style = which === "rows" ? { top: start, height: size } : { left: start, width: size };
      if (every === 1 || which === "columns") style.lineHeight = size;
      return el("span", { style, title: piece }, shown);
    });
  const [low, high] = ends || ["0", `${data.top.toPrecision(3) * 1}`];
  const node = el(
    "div",
    { class: "large", "aria-hidden": String(!pick) },
    caption,
    el("div", { class: "rows", style: { height: `${side}px`, width: `${room}px` } }, ...names("rows")),
    field,
    el("div", { class: "columns", style: { width: `${side}px`, height: `${room}px` } }, ...names("columns")),
    el("div", { class: "scale" }, low, scale, high),
  );
  const stripe = (mark, at, style) => {
    mark.style.display = at === null ? "none" : "block";
    if (at !== null) Object.assign(mark.style, style(`${at * cell}px`, `${Math.max(2, cell)}px`));
  };
  let seen = [0, 0]; // where the cross is
  const cross = (query, key = query) => {
    seen = [query ?? 0, key ?? 0];
    stripe(row, query, (top, height) => ({ top, height, left: 0, width: "100%" }));
    stripe(column, key, (left, width) => ({ left, width, top: 0, height: "100%" }));
  };
  const under = (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset) => Math.max(0, Math.min(count - 1, Math.floor(offset / cell)));
    return [at(event.clientY - box.top), at(event.clientX - box.left)];
  };
  const look = (query, key) => {
    point(query, key);
    cross(query, key);
  };
  field.addEventListener("pointermove", (event) => look(...under(event)));
  if (pick) {
    field.addEventListener("click", (event) => pick(...under(event)));
    steered(field, count, () => seen, look, pick);
  }
  return {
    node,
    cross,
    show(panel, token, pixels) {
      caption.textContent = `${panel.name} · row: query · column: key`;
      paint(canvas, panel.weights, data, Math.ceil(count / 880), pixels);
      cross(token);
    },
  };
}

/** Let arrows walk through a map from where the cross is, and Enter pick what it is at. */
function steered(field, count, seen, look, pick) {
  const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
  const said = "attention map: arrows move from query to query and from key to key, Enter selects both";
  field.tabIndex = 0;
  field.setAttribute("role", "application");
  field.setAttribute("aria-label", said);
  field.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    const within = (at, axis) => Math.max(0, Math.min(count - 1, at + step[axis]));
    if (step) look(...seen().map(within));
    else if (event.key === "Enter" || event.key === " ") pick(...seen());
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

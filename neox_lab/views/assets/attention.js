// Attention: a small map for each head, one of them large, and the text it reads.
//
// data: title, notes, pieces, first (position of the first piece), layers, heads, causal, top, measures, weights
//   weights: a byte for each weight, 255 * weight / top, [layer, head, query, key]; if causal only
//   keys up to the query; deflated.
//   measures: [layer][head] of [entropy in bits, share on the first, share on the token before].
// host.emit("select", {layer, head, token}) tells a widget what was locked; layer is a number of
// `layers`, head of `heads` or "mean", token a position or null.

async function mount(element, data, host) {
  const { body, say } = frame(element, data);
  const text = data.pieces;
  const named = (at) => `${isolate(text[at])}@${at + data.first}`;
  const panels = panelsOf(data, await unpack(data.weights));
  const columns = panels.length / data.layers.length;
  const large = largeMap(data, (query, key) => {
    tokens.show(query);
    describe(query, key);
  });
  const strip = el("div", { class: "tokens", role: "group", "aria-label": "tokens" });
  const lists = el("div", { class: "side" });
  const items = text.map((piece) => {
    const item = el("button", { type: "button", class: "token" }, el("bdi", {}, piece));
    item.append(el("small", {}, ""));
    return item;
  });
  strip.append(...items);

  const small = panels.map((panel) => {
    const name = `${panel.name}, ${measured(panel)}`;
    const item = el("button", { type: "button", class: "head", "aria-label": name, title: name });
    const canvas = el("canvas", { "aria-hidden": "true" });
    paint(canvas, panel.weights, data, Math.ceil(text.length / 48));
    if (text.length < 22) canvas.style.imageRendering = "pixelated"; // larger than its pixels
    item.append(canvas);
    return item;
  });
  if (panels.length > 1) body.append(headGrid(data, small, columns));
  body.append(large.node, el("div", { class: "reading" }, strip, lists));

  const panel = () => panels[heads.state.place];
  const heads = selection((place, locked) => {
    small.forEach((item, at) => item.setAttribute("aria-pressed", String(at === place && locked)));
    small.forEach((item, at) => item.classList.toggle("shown", at === place));
    large.show(panels[place], tokens.state.place);
    readings();
    describe(tokens.state.place);
    if (locked) emit();
  }, 0);
  const tokens = selection((place, locked) => {
    items.forEach((item, at) => item.setAttribute("aria-pressed", String(at === place && locked)));
    large.cross(place);
    readings();
    describe(place);
    if (locked) emit();
  }, null);
  roving(body, small, columns, heads);
  roving(strip, items, 0, tokens);
  heads.show(0);

  function emit() {
    const token = tokens.state.locked ? tokens.state.place : null;
    if (host) host.emit("select", { layer: panel().layer, head: panel().head, token });
  }

  /** Colour each token by how much the chosen one looks at it, and is looked at by it. */
  function readings() {
    const at = tokens.state.place;
    const weight = panel().weight;
    items.forEach((item, other) => {
      const out = at === null ? 0 : weight(at, other);
      const back = at === null || other === at ? 0 : weight(other, at);
      const seen = Math.max(out, back) / data.top;
      const tint = seen < 0.005 ? null : mix(WHITE, out >= back ? BLUE : ORANGE, Math.sqrt(seen));
      fill(item, tint);
      item.lastChild.textContent = tint ? Math.max(out, back).toFixed(2) : "";
    });
    if (at === null) {
      lists.replaceChildren(el("p", { class: "hint" }, "Point at a token to see where it looks."));
      return;
    }
    lists.replaceChildren(
      ranked(`${named(at)} looks at`, BLUE, (other) => weight(at, other)),
      ranked(`${named(at)} is looked at by`, ORANGE, (other) => weight(other, at)),
    );
  }

  function ranked(caption, colour, of) {
    const best = text.map((_, other) => [of(other), other]).filter(([share]) => share > 0);
    best.sort((a, b) => b[0] - a[0]);
    const rows = best
      .slice(0, 5)
      .map(([share, at]) => [named(at), share / data.top, share.toFixed(3)]);
    const shown = rows.length ? bars(rows, colour) : el("p", { class: "hint" }, "nothing");
    return el("div", {}, el("h4", {}, caption), shown);
  }

  function describe(query, key) {
    const head = `${panel().name}: ${measured(panel())}.`;
    const lock = heads.state.locked ? " Locked; Esc unlocks." : "";
    if (query === null || key === undefined) return say(head + lock);
    const from = named(query);
    const share = panel().weight(query, key).toFixed(3);
    say(`${head} ${from} → ${named(key)}: ${share} ± ${(data.top / 510).toFixed(3)}${lock}`);
  }
}

/** The panels row by row: a layer's heads, then their mean if there are several. */
function panelsOf(data, bytes) {
  const count = data.pieces.length;
  const size = data.causal ? (count * (count + 1)) / 2 : count * count;
  const panel = (layer, head, weights, measures) => ({
    layer,
    head,
    name: head === "mean" ? `layer ${layer} mean of heads` : `layer ${layer} head ${head}`,
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

const PIXELS = new Uint32Array(256).map((_, byte) => {
  const [red, green, blue] = viridis(Math.sqrt(byte / 255)).map(Math.round);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
});

/** A head's map, one pixel the largest of `factor` x `factor` weights; what is not, transparent. */
function paint(canvas, weights, data, factor) {
  const count = data.pieces.length;
  const side = Math.ceil(count / factor);
  const largest = new Uint16Array(side * side);
  for (let query = 0, at = 0; query < count; query++) {
    const row = Math.floor(query / factor) * side;
    const keys = data.causal ? query + 1 : count;
    for (let key = 0; key < keys; key++, at++) {
      const pixel = row + Math.floor(key / factor);
      if (weights[at] >= largest[pixel]) largest[pixel] = weights[at] + 1;
    }
  }
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d");
  const image = context.createImageData(side, side);
  const pixels = new Uint32Array(image.data.buffer);
  largest.forEach((byte, pixel) => (pixels[pixel] = byte ? PIXELS[byte - 1] : 0));
  context.putImageData(image, 0, 0);
}

/** The small maps in rows of layers, with the numbers of layers and heads. */
function headGrid(data, items, columns) {
  const side = Math.max(22, Math.min(96, Math.floor(370 / columns)));
  const grid = el("div", { class: "heads", role: "group", "aria-label": "attention heads" });
  grid.style.gridTemplateColumns = `auto repeat(${columns}, ${side}px)`;
  const names = [...data.heads.map(String), ...(columns > data.heads.length ? ["mean"] : [])];
  grid.append(el("span", {}, ""), ...names.map((name) => el("span", {}, name)));
  data.layers.forEach((layer, row) => {
    grid.append(el("span", {}, `layer ${layer}`));
    for (const item of items.slice(row * columns, (row + 1) * columns)) {
      Object.assign(item.style, { width: `${side}px`, height: `${side}px` });
      grid.append(item);
    }
  });
  return grid;
}

/** One head large, with names on both sides and a cross at what is pointed at. */
function largeMap(data, point) {
  const count = data.pieces.length;
  const side = Math.max(160, Math.min(400, count * 26));
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
  const scale = el("div", { class: "scale" }, "0", el("i"), `${data.top.toPrecision(3) * 1}`);
  const node = el(
    "div",
    { class: "large", "aria-hidden": "true" },
    caption,
    el("div", { class: "rows", style: { height: `${side}px`, width: `${room}px` } }, ...names("rows")),
    field,
    el("div", { class: "columns", style: { width: `${side}px`, height: `${room}px` } }, ...names("columns")),
    scale,
  );
  const stripe = (mark, at, style) => {
    mark.style.display = at === null ? "none" : "block";
    if (at !== null) Object.assign(mark.style, style(`${at * cell}px`, `${Math.max(2, cell)}px`));
  };
  const cross = (query, key = query) => {
    stripe(row, query, (top, height) => ({ top, height, left: 0, width: "100%" }));
    stripe(column, key, (left, width) => ({ left, width, top: 0, height: "100%" }));
  };
  field.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = (offset) => Math.max(0, Math.min(count - 1, Math.floor(offset / cell)));
    const [query, key] = [at(event.clientY - box.top), at(event.clientX - box.left)];
    point(query, key);
    cross(query, key);
  });
  return {
    node,
    cross,
    show(panel, token) {
      caption.textContent = `${panel.name} · row: query · column: key`;
      paint(canvas, panel.weights, data, Math.ceil(count / 880));
      cross(token);
    },
  };
}

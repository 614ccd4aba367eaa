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
  const lists = steady(el("div", { class: "side" }));
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
      const tint = seen < 0.005 ? null : mix(ground, out >= back ? BLUE : ORANGE, Math.sqrt(seen));
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
    const { locked } = heads.state;
    if (query === null || key === undefined) return say(ending(head, locked));
    const from = named(query);
    const share = panel().weight(query, key).toFixed(3);
    const weight = `${share} ± ${(data.top / 510).toFixed(3)}`;
    say(ending(`${head} ${from} → ${named(key)}: ${weight}`, locked));
  }
}

/** The small maps in rows of layers, with the numbers of layers and heads. */
function headGrid(data, items, columns) {
  const side = Math.max(22, Math.min(96, Math.floor(370 / columns)));
  const grid = el("div", { class: "heads", role: "group", "aria-label": "attention heads" });
  grid.style.gridTemplateColumns = `auto repeat(${columns}, ${side}px)`;
  const names = [...data.heads.map(String), ...(columns > data.heads.length ? ["mean"] : [])];
  grid.append(el("span", {}, axisNames("layer", "head")), ...names.map((name) => el("span", {}, name)));
  data.layers.forEach((layer, row) => {
    grid.append(el("span", {}, String(layer)));
    for (const item of items.slice(row * columns, (row + 1) * columns)) {
      Object.assign(item.style, { width: `${side}px`, height: `${side}px` });
      grid.append(item);
    }
  });
  return grid;
}

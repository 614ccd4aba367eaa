// An attribution graph: tokens from left to right, layers from below. Pointing at a node shows who
// adds to it and to whom it adds; pinned nodes keep the edges between them.
//
// data: title, notes, tokens, columns (their places), rows, row_labels, size, names, kinds (0 feature, 1 error, 2 token, 3 logit),
// x, y, influence, said, page, group (-1: none), group_names, group_colours, pinned, begin, end, weight,
// share (edges, those that carry most first), dashed (the kind of edges that is). Places are inches.

const INCH = 96;
const LISTED = 12; // edges of a node, each way
const FIRST = 150; // edges drawn at first

function mount(element, data) {
  const { body, say } = frame(element, data);
  const nodes = data.names.map((name, at) => ({
    at,
    name,
    kind: data.kinds[at],
    group: data.group[at],
    x: data.x[at] * INCH,
    y: data.y[at] * INCH,
    influence: data.influence[at],
    into: [],
    out: [],
  }));
  const top = Math.min(...data.rows) * INCH - 78;
  const [wide, high] = [data.size[0] * INCH + 10, data.size[1] * INCH - top];
  const picture = svg("svg", { viewBox: `0 ${top} ${wide} ${high}`, class: `network graph dashes-${data.dashed}` });
  picture.setAttribute("role", "listbox");
  picture.setAttribute("aria-label", "nodes of the graph");
  picture.style.width = `${wide}px`;
  data.row_labels.forEach((name, row) => text(0, data.rows[row] * INCH + 4, name, "row"));
  const foot = data.rows[data.rows.length - 1] * INCH + 16;
  data.tokens.forEach((token, at) => tilted(data.columns[at] * INCH + 4, foot, token, "end"));

  const edges = data.begin.map((begin, at) => {
    const edge = { at, from: nodes[begin], to: nodes[data.end[at]], weight: data.weight[at], share: data.share[at] };
    edge.carried = edge.share * Math.max(edge.to.influence, 1e-9);
    edge.from.out.push(edge);
    edge.to.into.push(edge);
    return edge;
  });
  const most = edges.length ? edges[0].carried : 1;
  const lines = svg("g", { "data-kind": "edges" });
  const own = svg("g", { "data-kind": "own" });
  picture.append(lines, own);

  const items = nodes.map((node) => {
    const mark = svg("g", { class: `part kind${node.kind}`, role: "option", "aria-label": isolate(node.name) });
    const size = 3 + 4 * Math.sqrt(Math.min(1, node.influence));
    const { x, y } = node;
    let shape;
    if (node.kind === 0) shape = svg("circle", { cx: x, cy: y, r: size });
    else if (node.kind === 1) shape = svg("rect", { x: x - size, y: y - size, width: 2 * size, height: 2 * size });
    else if (node.kind === 2) shape = svg("path", { d: `M${x} ${y - size}L${x + size} ${y + size}L${x - size} ${y + size}Z` });
    else shape = svg("path", { d: `M${x} ${y - size}L${x + size} ${y}L${x} ${y + size}L${x - size} ${y}Z` });
    shape.setAttribute("class", "mark");
    if (node.group >= 0) shape.style.fill = data.group_colours[node.group];
    mark.append(shape);
    if (node.kind === 3) tilted(x, y - 10, node.name.replace(/^logit /, ""), "start");
    return mark;
  });
  picture.append(...items);

  const slider = el("input", { type: "range", min: 0, max: edges.length, value: Math.min(FIRST, edges.length) });
  slider.setAttribute("aria-label", "how many edges are drawn, those that carry most first");
  const shown = el("output");
  const control = el("div", { class: "slider" }, el("span", {}, "edges"), slider, shown);
  const legend = el("p", { class: "hint" });
  const swatch = (kind) => el("i", { class: `swatch ${kind}${kind === data.dashed ? " dashed" : ""}` });
  legend.append(swatch("more"), " adds ", swatch("less"), " takes away · ○ feature □ what features miss △ token ◇ logit");
  data.group_names.forEach((group, at) => {
    const patch = el("i", { class: "swatch group", style: { background: data.group_colours[at] } });
    legend.append(" · ", patch, ` ${group}`);
  });
  const title = el("h4", { dir: "auto" }, "");
  const about = el("p", { class: "hint" }, "");
  const pin = el("button", { type: "button" }, "Pin");
  const lists = el("div", { class: "edges" });
  const pins = el("div", { class: "pins" });
  const beside = steady(el("div", {}, title, about, pin, lists));
  body.append(el("div", { class: "scroll" }, picture));
  const savers = el("p", { class: "hint savers" }, "save", ...drawingSavers(picture, "graph"));
  body.append(el("div", { class: "network-side" }, control, legend, pins, beside, savers));
  const pinned = new Set(data.pinned);
  const choice = selection(draw, 0);
  roving(picture, items, 0, choice);
  pin.addEventListener("click", () => toggle(choice.state.place));
  slider.addEventListener("input", all);
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  picture.addEventListener("pointerleave", () => choice.state.locked || everything());
  all();
  repin();
  everything();

  /** The edges that carry most. */
  function all() {
    const count = Number(slider.value);
    lines.replaceChildren(...edges.slice(0, count).reverse().map((edge) => line(edge, most, 0.75)));
    shown.textContent = `${count} of ${edges.length}`;
  }

  function line(edge, largest, strength) {
    const share = Math.sqrt(Math.min(1, edge.carried / largest));
    return svg("path", {
      d: `M${edge.from.x} ${edge.from.y}L${edge.to.x} ${edge.to.y}`,
      class: edge.weight < 0 ? "less" : "more",
      "stroke-width": 0.6 + 3.4 * share,
      "stroke-opacity": strength * (0.2 + 0.6 * share),
    });
  }

  function draw(place, locked) {
    const node = nodes[place];
    items.forEach((item, at) => {
      item.classList.toggle("shown", at === place);
      item.setAttribute("aria-selected", String(at === place && locked));
    });
    picture.classList.add("chosen");
    const touching = [...node.into, ...node.out];
    const largest = Math.max(1e-12, ...touching.map((edge) => edge.carried));
    own.replaceChildren(...between(), ...touching.map((edge) => line(edge, largest, 1.2)));
    title.textContent = node.name;
    const said = data.said[place] ? `${data.said[place]} · ` : "";
    about.textContent = `${said}influence ${print(node.influence)}`;
    const page = data.page[place];
    if (page) about.append(" · ", el("a", { href: page }, "its page"));
    pin.hidden = false;
    pin.textContent = pinned.has(place) ? "Unpin" : "Pin";
    lists.replaceChildren(...list("gets from", node.into, "from", true), ...list("adds to", node.out, "to", false));
    say(ending(`${isolate(node.name)}: ${node.into.length} edges in, ${node.out.length} out`, locked));
  }

  /** Edges among pinned nodes. */
  function between() {
    const found = edges.filter((edge) => pinned.has(edge.from.at) && pinned.has(edge.to.at));
    const largest = Math.max(1e-12, ...found.map((edge) => edge.carried));
    return found.map((edge) => line(edge, largest, 1.2));
  }

  function toggle(place) {
    if (!pinned.delete(place)) pinned.add(place);
    repin();
    draw(place, choice.state.locked);
  }

  /** A chip for each pinned node. */
  function repin() {
    items.forEach((item, at) => item.classList.toggle("pinned", pinned.has(at)));
    const chips = [...pinned].map((at) => {
      const chip = el("button", { type: "button", class: "chip" }, nodes[at].name);
      chip.addEventListener("click", () => choice.lock(at));
      return chip;
    });
    pins.replaceChildren(...(chips.length ? [el("span", { class: "hint" }, "pinned"), ...chips] : []));
  }

  /** Nothing is pointed at. */
  function everything() {
    picture.classList.remove("chosen");
    items.forEach((item) => item.classList.remove("shown"));
    own.replaceChildren(...between());
    title.textContent = "";
    about.textContent = "Point at a node for what adds to it.";
    pin.hidden = true;
    lists.replaceChildren();
    say(`${nodes.length} nodes, ${edges.length} edges`);
  }

  /** Edges one way, those of a supernode as one. */
  function list(heading, found, end, shares) {
    const rows = new Map();
    for (const edge of found) {
      const other = edge[end];
      const name = other.group >= 0 ? data.group_names[other.group] : other.name;
      const row = rows.get(name) || { name, weight: 0, share: 0 };
      row.weight += edge.weight;
      row.share += edge.share;
      rows.set(name, row);
    }
    const size = (row) => (shares ? row.share : Math.abs(row.weight));
    const sorted = [...rows.values()].sort((a, b) => size(b) - size(a));
    if (!sorted.length) return [];
    const first = sorted.slice(0, LISTED);
    const table = bars(first.map((row) => [row.name, size(row) / size(first[0]), print(row.weight)]));
    table.querySelectorAll("i").forEach((bar, at) => {
      bar.style.background = css(first[at].weight < 0 ? LESS : MORE);
    });
    const more = sorted.length - first.length;
    const rest = more ? [el("p", { class: "hint" }, `and ${more} more`)] : [];
    return [el("p", { class: "hint" }, heading), table, ...rest];
  }

  function text(x, y, content, kind) {
    const node = svg("text", { x, y, class: kind });
    node.textContent = content;
    picture.append(node);
  }

  function tilted(x, y, content, anchor) {
    const node = svg("text", { x, y, "text-anchor": anchor, transform: `rotate(-55 ${x} ${y})` });
    node.textContent = content;
    picture.append(node);
  }
}

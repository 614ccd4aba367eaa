// A network of parts, as network.js says; the explorer has it in a panel.

const [BOX, GAP, ROW, LEFT, TOP] = [52, 10, 74, 70, 20];
const LISTED = 10; // edges of a part, each way
const MAP = 250; // the side of a map of attention
const PORTS = { q: -16, k: 0, v: 16 }; // where an edge to one of a head's inputs ends

/** Fill `body` with a network: `say` reads a part aloud, `pick` is told which one was clicked. */
function network(body, data, looks, say, pick = () => {}) {
  const parts = data.names.map((name, at) => ({ name, box: data.boxes[at], row: data.rows[at], edges: [] }));
  const columns = Math.max(0, ...data.columns) + 1;
  const wide = Math.max(room(body, 520 + LEFT + 8) - LEFT - 8, columns * (BOX + GAP));
  parts.forEach((part, at) => {
    const share = data.columns[at] < 0 ? 0.5 : (data.columns[at] + 0.5) / columns;
    part.x = LEFT + share * wide;
    part.y = TOP + part.row * ROW;
  });
  const ported = data.note.some((note) => note in PORTS);
  const HIGH = ported ? 28 : 20;
  const most = Math.max(...data.value.map(Math.abs)) || 1;

  const high = TOP + (data.row_labels.length - 1) * ROW + HIGH + 8;
  const picture = svg("svg", { viewBox: `0 0 ${LEFT + wide + 8} ${high}`, class: `network dashes-${data.dashed}` });
  picture.setAttribute("role", "listbox");
  picture.setAttribute("aria-label", "parts of the network");
  picture.style.width = `${LEFT + wide + 8}px`;
  data.row_labels.forEach((name, row) => text(0, TOP + row * ROW + 4, name, "row"));
  const edges = data.value.map((value, at) => {
    const [from, to] = [parts[data.begin[at]], parts[data.end[at]]];
    const [x1, y1] = [from.x, from.y + HIGH / 2];
    const [x2, y2] = [to.x + (PORTS[data.note[at]] || 0), to.y - HIGH / 2];
    const bend = (y2 - y1) / 2;
    const share = Math.abs(value) / most;
    const node = svg("path", {
      d: `M${x1} ${y1}C${x1} ${y1 + bend} ${x2} ${y2 - bend} ${x2} ${y2}`,
      class: value < 0 ? "less" : "more",
      "stroke-width": 0.6 + 5 * share,
      "stroke-opacity": 0.25 + 0.6 * Math.sqrt(share),
    });
    const edge = { node, from, to, value, at, note: data.note[at] };
    from.edges.push(edge);
    to.edges.push(edge);
    return edge;
  });
  picture.append(...[...edges].reverse().map((edge) => edge.node)); // the largest on top
  const items = parts.map((part) => {
    const box = svg("g", { class: "part", role: "option", "aria-label": isolate(part.name) });
    const place = { x: part.x - BOX / 2, y: part.y - HIGH / 2, width: BOX, height: HIGH, rx: 3 };
    box.append(svg("rect", place));
    const name = svg("text", { x: part.x, y: part.y + 4, "text-anchor": "middle" });
    name.textContent = part.box;
    box.append(name);
    const read = new Set(part.edges.filter((edge) => edge.to === part).map((edge) => edge.note));
    for (const [letter, right] of Object.entries(PORTS)) {
      if (!read.has(letter)) continue;
      name.setAttribute("y", part.y + 10);
      const port = svg("text", { x: part.x + right, y: part.y - 4, "text-anchor": "middle", class: "port" });
      port.textContent = letter;
      box.append(port);
    }
    return box;
  });
  picture.append(...items);

  const slider = el("input", { type: "range", min: 1, max: edges.length, value: edges.length });
  slider.setAttribute("aria-label", "how many edges are drawn, the largest first");
  const shown = el("output");
  const control = el("div", { class: "slider" }, el("span", {}, "edges"), slider, shown);
  const legend = el("p", { class: "hint" });
  const swatch = (kind) => el("i", { class: `swatch ${kind}${kind === data.dashed ? " dashed" : ""}` });
  const drawn = [data.value.some((value) => value < 0), data.value.some((value) => !(value < 0))];
  ["less", "more"].forEach((kind, at) => {
    if (drawn[at]) legend.append(swatch(kind), ` ${data.signs[at]}`, el("br"));
  });
  legend.append(data.value_name);
  const name = el("h4", { dir: "auto" }, "");
  const lists = el("div", { class: "edges" });
  const map = looks && largeMap(data.attention, pointed, { most: MAP });
  const where = el("div", { class: "looks" });
  const how = looks && `where it looks, on ${data.attention.title}; colours by the square root of weights`;
  if (looks) where.append(el("p", { class: "hint" }, how), map.node);
  const beside = steady(el("div", {}, name, lists, where));
  body.append(el("div", { class: "scroll" }, picture));
  const savers = el("p", { class: "hint savers" }, "save", ...drawingSavers(picture, "network"));
  body.append(el("div", { class: "network-side" }, control, legend, beside, savers));
  let count = edges.length;

  const choice = selection(draw, 0);
  const lock = (place) => {
    choice.lock(place);
    pick(parts[place].name);
  };
  roving(picture, items, 0, { ...choice, lock });

  function draw(place, locked) {
    const part = parts[place];
    items.forEach((item, at) => item.classList.toggle("shown", at === place));
    items.forEach((item, at) => item.setAttribute("aria-selected", String(at === place && locked)));
    picture.classList.add("chosen");
    edges.forEach(({ node, from, to }) => node.classList.toggle("own", from === part || to === part));
    const own = part.edges.filter((edge) => edge.at < count);
    const [read, write] = [own.filter((e) => e.to === part), own.filter((e) => e.from === part)];
    name.textContent = part.name;
    const page = data.pages[place];
    if (page) name.append(" · ", el("a", { href: page }, "its page"));
    const panel = looks && looks.get(place);
    where.style.display = panel ? "" : "none";
    if (panel) map.show(panel, null);
    lists.replaceChildren(...list("reads", read, "from"), ...list("is read by", write, "to"));
    say(ending(`${isolate(part.name)}: ${read.length} edges in, ${write.length} out`, locked));
  }

  slider.addEventListener("input", () => limit(Number(slider.value)));
  slider.addEventListener("keydown", (event) => event.stopPropagation());
  picture.addEventListener("pointerleave", () => choice.state.locked || everything());
  limit(edges.length);
  everything();

  /** Draw so many edges, and fade parts that none of them touches. */
  function limit(number) {
    count = number;
    edges.forEach(({ node, at }) => (node.style.display = at < count ? "" : "none"));
    items.forEach((item, at) => {
      item.classList.toggle("out", !parts[at].edges.some((edge) => edge.at < count));
    });
    const least = Math.abs(edges[count - 1].value);
    shown.textContent = `${count} of ${edges.length}, from ${print(least)}`;
    if (picture.classList.contains("chosen")) draw(choice.state.place, choice.state.locked);
  }

  /** Nothing is pointed at: all edges alike. */
  function everything() {
    picture.classList.remove("chosen");
    items.forEach((item) => item.classList.remove("shown"));
    name.textContent = "";
    where.style.display = "none";
    const more = looks ? ", and at a head for where it looks; a click holds it." : ".";
    lists.replaceChildren(el("p", { class: "hint" }, `Point at a part for its edges${more}`));
    say(`${parts.length} parts, ${edges.length} edges`);
  }

  /** Say the weight that is pointed at. */
  function pointed(query, key) {
    const { pieces, first, top } = data.attention;
    const panel = looks.get(choice.state.place);
    const named = (at) => `${isolate(pieces[at])}@${at + first}`;
    const weight = `${panel.weight(query, key).toFixed(3)} ± ${(top / 510).toFixed(3)}`;
    say(`${panel.name}: ${named(query)} → ${named(key)}: ${weight}`);
  }

  function list(title, found, end) {
    if (!found.length) return [];
    const first = found.slice(0, LISTED);
    const rows = first.map((edge) => {
      const other = edge.note ? `${edge[end].name} (${edge.note})` : edge[end].name;
      return [other, Math.abs(edge.value) / most, print(edge.value)];
    });
    const table = bars(rows);
    table.querySelectorAll("i").forEach((bar, at) => {
      bar.style.background = `var(--${first[at].value < 0 ? "less" : "more"})`;
    });
    const more = found.length - first.length;
    const rest = more ? [el("p", { class: "hint" }, `and ${more} more`)] : [];
    return [el("p", { class: "hint" }, title), table, ...rest];
  }

  function text(x, y, content, kind) {
    const node = svg("text", { x, y, class: kind });
    node.textContent = content;
    picture.append(node);
  }
}

/** The map of each part that is a head and has one, by its number. */
async function looking({ attention, names }) {
  const panels = panelsOf(attention, await unpack(attention.weights));
  const own = attention.parts.map((part, at) => [part, { ...panels[at], name: isolate(names[part]) }]);
  return new Map(own);
}

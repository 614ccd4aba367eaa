// The table of coloured cells that a grid is, and what its colours mean.

const scaleOf = (name) => ({ viridis, diverging: signed, teals: amount })[name];
const GREY = [217, 217, 217];
const CROWDED = 34; // columns with numbers in their cells

/**
 * Fill `body` with the table of cells; `say` speaks of the cell that is looked at. What comes back
 * shows a cell that another table asks for: `host.looked(row, column)` is told of each look here.
 */
function cells(body, say, data, host) {
  const repeated = new Set(data.columns.filter((name, at) => data.columns.indexOf(name) !== at));
  const colour = scaleOf(data.scale);
  const crowded = data.columns.length > CROWDED && !data.bars;
  const upright = crowded || data.columns.some((name) => name.length > 9);
  const side = steady(el("div", { class: "side" }));
  const nodes = [];
  const heads = data.columns.map((name, at) =>
    el("th", { scope: "col", title: name }, el("bdi", {}, crowded && at % 5 ? "" : name)),
  );
  const named = (column) => {
    const name = isolate(data.columns[column]);
    return repeated.has(data.columns[column]) ? `${name}@${column + (data.first || 0)}` : name;
  };
  const corner = el("th", { class: "corner" }, axisNames(data.row_axis, data.column_axis));
  const lines = data.rows.map((text, row) => {
    const name = el("th", { scope: "row", title: text }, el("bdi", {}, text));
    return el("tr", {}, name, ...data.columns.map((_, column) => cell(row, column)));
  });
  const table = el("table", { role: "grid", class: "grid", "aria-label": data.title });
  table.classList.toggle("crowded", crowded);
  table.classList.toggle("upright", upright);
  table.append(el("thead", {}, el("tr", {}, corner, ...heads)), el("tbody", {}, ...lines));
  const scroll = scrolling([table], () => nodes[choice.state.place]);
  body.append(scroll.node, side);

  function cell(row, column) {
    const level = data.level[row][column];
    const node = el("td", { role: "gridcell" }, el("bdi", {}, crowded ? "" : data.text[row][column]));
    if (data.under) node.append(el("small", {}, data.under[row][column]));
    fill(node, level === null ? GREY : colour(level / 255));
    if (data.marked && data.marked[row][column]) node.classList.add("marked");
    node.setAttribute("aria-label", words(row, column));
    nodes.push(node);
    return node;
  }

  /** Where a cell is; an axis whose labels say what they are is not named again. */
  function place(row, column) {
    const of = (axis, name, shown) => (name.startsWith(axis) ? shown : `${axis} ${shown}`);
    const left = of(data.row_axis, data.rows[row], isolate(data.rows[row]));
    return `${left}, ${of(data.column_axis, data.columns[column], named(column))}`;
  }

  function words(row, column) {
    const at = place(row, column);
    const under = data.under ? ` (${data.under[row][column]})` : "";
    const value = `${data.value_name} ${isolate(data.text[row][column])}${under}`;
    const mark = data.marked && data.marked[row][column] ? `, ${data.mark}` : "";
    return `${at}: ${value}${mark}`;
  }

  const where = (number) => [
    Math.floor(number / data.columns.length),
    number % data.columns.length,
  ];
  let asked = false; // by another table
  const choice = selection((chosen, locked) => {
    const [row, column] = where(chosen);
    nodes.forEach((node, at) => node.setAttribute("aria-selected", String(at === chosen && locked)));
    heads.forEach((node, at) => node.classList.toggle("at", at === column));
    lines.forEach((node, at) => node.firstChild.classList.toggle("at", at === row));
    nodes.forEach((node, at) => node.classList.toggle("shown", at === chosen));
    details(row, column);
    if (asked) return;
    say(ending(words(row, column), locked));
    if (locked && host && host.emit) host.emit("cell", { row, column });
    if (host && host.looked) host.looked(row, column);
  }, null);
  roving(table, nodes, data.columns.length, choice);
  if (data.bars) choice.show(nodes.length - 1); // what the model says at last
  else say("Point at a field, or move to one with Tab and the arrow keys.");

  return {
    ask(row, column) {
      asked = true;
      choice.show(row * data.columns.length + column);
      asked = false;
    },
  };

  function details(row, column) {
    if (!data.bars && !data.lines) return;
    const at = place(row, column);
    const said = data.lines ? data.lines[row][column].map((line) => el("p", {}, line)) : [];
    const ranked = data.bars ? [bars(data.bars[row][column])] : [];
    side.replaceChildren(el("div", {}, el("h4", {}, at), ...ranked, ...said));
  }
}

/** What the colours mean. */
function legend({ scale, low, high, legend: name, value_name }) {
  const stops = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1];
  const colours = stops.map((share) => css(scaleOf(scale)(share))).join(", ");
  const strip = el("i", { style: { background: `linear-gradient(90deg, ${colours})` } });
  return el("div", { class: "scale" }, low, strip, high, ` ${name || value_name}`);
}

// Two tables of a lens beside each other, or below each other where there is little room. Looking at
// a field shows the one that belongs to it on the other side.
//
// data: title, notes, sides: two of {name, grid: what grid.js gets}, pairs: [column, column] of
//   columns that belong together.

function mount(element, data) {
  const { body, say } = frame(element, data);
  body.parentNode.insertBefore(legend(data.sides[0].grid), body);
  const tables = [];
  const partner = [new Map(), new Map()];
  for (const [first, second] of data.pairs) {
    partner[0].set(first, second);
    partner[1].set(second, first);
  }
  data.sides.forEach(({ name, grid }, side) => {
    const place = el("div", { class: "lens-side" }, el("h4", { dir: "auto" }, name));
    body.append(place);
    const looked = (row, column) => {
      const other = partner[side].get(column);
      if (other !== undefined && tables[1 - side]) tables[1 - side].ask(row, other);
    };
    const told = (text) => say(`${isolate(name)}: ${text}`);
    tables[side] = cells(place, told, { ...grid, title: `${data.title}: ${name}` }, { looked });
  });
}

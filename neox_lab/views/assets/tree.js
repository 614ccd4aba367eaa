// A table in groups that fold, and a field that finds rows: a model's hook points.
//
// data: title, notes, columns, folded (at first), groups: name, rows (lists of texts, the first one
// a name).

function mount(element, data) {
  const { body, say } = frame(element, data);
  const groups = data.groups.map(({ name, rows }) => {
    const lines = rows.map((row) => {
      const [first, ...rest] = row.map((text) => el("bdi", {}, text));
      const cells = rest.map((text) => el("td", {}, text));
      return el("tr", {}, el("th", { scope: "row" }, first), ...cells);
    });
    const heads = data.columns.map((column) => el("th", { scope: "col" }, column));
    const table = el("table", { class: "rows-of" }, el("thead", {}, el("tr", {}, ...heads)));
    table.append(el("tbody", {}, ...lines));
    const count = el("span", { class: "hint" }, "");
    const node = el("details", {}, el("summary", {}, el("bdi", {}, name), " ", count));
    node.append(el("div", { class: "scroll" }, table));
    return { node, count, lines, texts: rows.map((row) => row.join(" ").toLowerCase()) };
  });
  const open = groups.length === 1 || !data.folded;
  for (const { node } of groups) node.open = open;
  const search = el("input", { type: "search", placeholder: "Find …", "aria-label": "find rows" });
  search.addEventListener("keydown", (event) => event.stopPropagation());
  search.addEventListener("input", () => find(true));
  const list = el("div", { class: "groups" }, ...groups.map((group) => group.node));
  body.append(search, list);
  find(false);

  /** Show the rows that hold all words of the search. */
  function find(opening) {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const { node, count, lines, texts } of groups) {
      let here = 0;
      texts.forEach((text, at) => {
        const fits = words.every((word) => text.includes(word));
        lines[at].hidden = !fits;
        here += fits;
      });
      count.textContent = words.length ? `${here} of ${lines.length}` : `${lines.length}`;
      if (opening) node.open = words.length ? here > 0 : open;
      found += here;
    }
    say(words.length ? `${found} found` : `${found} in all`);
  }
}

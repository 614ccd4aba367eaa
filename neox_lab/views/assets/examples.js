// Short texts below one another, tinted by one scale.
//
// data: title, notes, kinds ({name: colour}), examples: heading, and pieces as in strip.js.

function mount(element, data) {
  const { body, say } = frame(element, data);
  const list = el("div", {});
  const marked = [];
  const said = [];
  for (const { heading, pieces } of data.examples) {
    const flow = el("p", { class: "flow", dir: "auto" });
    for (const piece of pieces) put(flow, piece, data.kinds, marked, said);
    list.append(el("p", { class: "note" }, heading), flow);
  }
  body.append(legend({ kinds: data.kinds, pieces: [] }), list);
  tell(list, marked, said, say);
}

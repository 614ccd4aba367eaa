// A text whose pieces carry something: tags, losses, attributions, where an answer may start or end.
//
// data: title, notes, kinds ({name: colour}), pieces: text, and for those that are marked kind,
//   note (printed below), strength (0 to 1), details (rows of [name, value]) and marks (rows of
//   [name, share, value], drawn as thin bars below the text); under: the piece below it, where two
//   texts are compared token by token.

function mount(element, data) {
  const { body, say } = frame(element, data);
  const flow = el("p", { class: "flow", dir: "auto" });
  const marked = [];
  const said = [];
  for (const piece of data.pieces) {
    if (!piece.under) {
      put(flow, piece, data.kinds, marked, said);
      continue;
    }
    const column = el("span", { class: "column" });
    for (const each of [piece, piece.under]) {
      const cell = el("span", { class: "cell" });
      put(cell, each, data.kinds, marked, said);
      column.append(cell);
    }
    flow.append(column);
  }
  body.append(legend(data), flow);
  tell(flow, marked, said, say);
}

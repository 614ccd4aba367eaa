// Pieces of a text as nodes: tinted, boxed, with what they carry below them and told in words.

const MARKS = ["#2a8bc9", "#d9661f", "#009e73"];

/** Adds a piece to `parent`; those with something to tell go to `marked`, what they tell to `said`. */
function put(parent, piece, kinds, marked, said) {
  if (piece.kind === null && !piece.marks) {
    parent.append(el("bdi", {}, piece.text));
    return;
  }
  const node = el("span", { class: "piece", role: "button" }, el("bdi", {}, piece.text));
  if (piece.kind !== null) {
    fill(node, tint(hex(kinds[piece.kind]), piece.strength));
    node.style.borderColor = kinds[piece.kind];
  }
  if (piece.marks) node.append(thin(piece.marks));
  const note = piece.marks ? printed(piece.marks) : piece.note;
  if (note) node.append(el("small", {}, note));
  parent.append(node);
  marked.push(node);
  said.push(describe(piece));
}

/** Lets a reader point at marked pieces, or walk through them. */
function tell(group, marked, said, say) {
  if (!marked.length) return;
  const choice = selection((place, locked) => {
    marked.forEach((node, at) => node.setAttribute("aria-pressed", String(at === place && locked)));
    say(ending(said[place], locked));
  }, null);
  marked.forEach((node, at) => node.setAttribute("aria-label", said[at]));
  roving(group, marked, 0, choice);
  say("Point at a marked piece, or move to one with Tab and the arrow keys.");
}

/** One thin bar for each mark, with its value as text for those who do not see it. */
function thin(marks) {
  const lines = marks.map(([, share], at) =>
    el("i", { style: { width: `${100 * share}%`, background: MARKS[at % MARKS.length] } }),
  );
  return el("span", { class: "thin", "aria-hidden": "true" }, ...lines);
}

/** The marks that are worth a number. */
const printed = (marks) =>
  marks
    .filter(([, share]) => share >= 0.05)
    .map(([name, , value]) => `${name} ${value}`)
    .join(", ");

/** All that a piece carries, in one line. */
function describe({ text, kind, note, marks = [], details = [] }) {
  const carried = [...details, ...marks.map(([name, , value]) => [name, value])];
  if (!carried.length && note) carried.push([kind, note]);
  const list = carried.map(([name, value]) => `${name} ${value}`).join(", ");
  return `${isolate(text.trim() || text)}: ${list || kind}`;
}

/** The kinds and the marks with their colours. */
function legend(data) {
  const withMarks = data.pieces.find((piece) => piece.marks);
  const names = withMarks ? withMarks.marks.map(([name], at) => [name, MARKS[at]]) : [];
  const keys = [...Object.entries(data.kinds), ...names].map(([name, colour]) =>
    el("span", { class: "key" }, el("i", { style: { background: colour } }), el("bdi", {}, name)),
  );
  return el("div", { class: "keys" }, ...keys);
}

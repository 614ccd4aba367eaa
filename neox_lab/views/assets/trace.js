// A text token by token, and at each place what else might have come.
//
// data: title, notes, position (shown first, null for none), first (position of the first piece),
//   prompt (how many pieces were given), next (whether the alternatives of a token are for the
//   one after it), pieces: text, given (part of the prompt), share (0 to 1 or null), note,
//   alternatives ([label, share, percentage, whether it came] rows, best first; may be empty).
// host.emit("branch", {position, rank}): a widget's user wants alternative `rank` (from 0) instead
//   of the token `position` (from 0 after the prompt).

function mount(element, data, host) {
  const { body, say } = frame(element, data);
  const items = data.pieces.map((piece) => {
    const kind = piece.given ? "token given" : "token";
    const item = el("button", { type: "button", class: kind }, el("bdi", {}, piece.text));
    if (piece.share !== null) fill(item, amount(DEEPEST * piece.share));
    item.append(el("small", {}, piece.note || ""));
    return item;
  });
  const strip = el("div", { class: "tokens", role: "group", "aria-label": "tokens" }, ...items);
  const side = steady(el("div", { class: "side" }));
  body.append(el("div", { class: "reading" }, strip, side));

  const choice = selection((place, locked) => {
    items.forEach((item, at) => item.setAttribute("aria-pressed", String(at === place && locked)));
    const piece = data.pieces[place];
    const name = `${isolate(piece.text)}@${place + data.first}`;
    const caption = data.next ? `After ${name}` : `At ${name}`;
    const there = piece.alternatives;
    say(ending(`${caption}: ${spoken(piece)}`, locked));
    if (!there.length) return side.replaceChildren();
    const shown = bars(
      there.map(([label, share, text, came]) => [label, share, came ? `${text} ✓` : text]),
    );
    const branching = host && !data.next && !piece.given;
    if (branching) offer(shown, place + data.first - data.prompt);
    const hint = branching ? "Choose one to write on from it." : "✓ is what stands in the text.";
    side.replaceChildren(el("div", {}, el("h4", {}, caption), shown, el("p", { class: "hint" }, hint)));
  }, null);
  roving(strip, items, 0, choice);
  if (data.position !== null) choice.show(data.position);

  /** What a listener hears of a token. */
  function spoken({ given, note, alternatives }) {
    const list = alternatives
      .slice(0, 3)
      .map(([label, , text]) => `${isolate(label)} ${text}`)
      .join(", ");
    if (data.next) return list;
    return [given ? "given" : note && `chosen with ${note}`, list].filter(Boolean).join("; ");
  }

  /** Make each alternative a button. */
  function offer(table, position) {
    table.querySelectorAll("th").forEach((cell, rank) => {
      const choose = el("button", { type: "button", class: "choose" }, ...cell.childNodes);
      choose.addEventListener("click", () => host.emit("branch", { position, rank }));
      cell.append(choose);
    });
  }
}

// Named numbers as bars; with pieces, how much each token of a text speaks for the chosen one.
//
// data: title, notes, names, values, texts (the values printed); pieces and attributions
//   ([name][piece], may be missing) with the largest of them, most, and each as printed, said.

function mount(element, data) {
  const { body, say } = frame(element, data);
  const low = Math.min(0, ...data.values);
  const reach = Math.max(0, ...data.values) - low || 1;
  const items = data.names.map((name, at) => {
    const value = data.values[at];
    const bar = el("i");
    bar.style.left = `${(100 * (Math.min(0, value) - low)) / reach}%`;
    bar.style.width = `${(100 * Math.abs(value)) / reach}%`;
    if (low < 0) bar.classList.add(value < 0 ? "less" : "more");
    const label = el("bdi", { class: "name", title: name }, name);
    const track = el("span", { class: "track" }, bar);
    const spoken = `${isolate(name)}: ${data.texts[at]}`;
    return el(
      "div",
      { class: "line", role: "option", "aria-label": spoken },
      label,
      track,
      el("span", { class: "value" }, data.texts[at]),
    );
  });
  const chart = el("div", { class: "chart", role: "listbox", "aria-label": data.title }, ...items);
  const strip = el("div", { class: "tokens" });
  body.append(chart);
  if (data.pieces) body.append(el("div", { class: "reading" }, strip));
  const choice = selection((place, locked) => {
    items.forEach((item, at) => item.setAttribute("aria-selected", String(at === place && locked)));
    items.forEach((item, at) => item.classList.toggle("shown", at === place));
    say(ending(`${isolate(data.names[place])}: ${data.texts[place]}`, locked));
    if (data.pieces) attribute(data.attributions[place], data.said[place]);
  }, null);
  roving(chart, items, 1, choice);
  if (!data.pieces) say("Point at a bar, or move to one with Tab and the arrow keys.");
  else choice.show(data.values.indexOf(Math.max(...data.values)));

  /** The text, each token orange where it speaks for the class and blue where against. */
  function attribute(shares, said) {
    const tokens = data.pieces.map((piece, at) => {
      const token = el("span", { class: "token" }, el("bdi", {}, piece));
      fill(token, signedTint(shares[at], data.most));
      token.append(el("small", {}, said[at]));
      return token;
    });
    strip.replaceChildren(...tokens);
  }
}

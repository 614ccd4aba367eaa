// Points over two numbers of one unit; pointing at one prints its name and both numbers.
//
// data: title, notes, x_label, y_label, names, x, y: points, the farthest from equality first.

const [LEFT, TOP, BOTTOM, ROOM] = [60, 24, 46, 16];

function mount(element, data) {
  const { body, say } = frame(element, data);
  const SIDE = room(body, LEFT + 400 + ROOM) - LEFT - ROOM;
  const all = [...data.x, ...data.y, 0];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const edge = 0.06 * (high - low || 1);
  const [least, most] = [low - edge, high + edge];
  const scaled = (value) => ((value - least) / (most - least)) * SIDE;
  const across = (x) => LEFT + scaled(x);
  const up = (y) => TOP + SIDE - scaled(y);

  const box = `0 0 ${LEFT + SIDE + ROOM} ${TOP + SIDE + BOTTOM}`;
  const picture = svg("svg", { viewBox: box, class: "plot scatter", role: "listbox" });
  picture.style.width = `${LEFT + SIDE + ROOM}px`;
  picture.setAttribute("aria-label", `${data.y_label} over ${data.x_label}`);
  const shown = ticks(least, most, 5);
  const texts = tickTexts(shown);
  for (const [at, value] of shown.entries()) {
    rule("rule", across(value), TOP, across(value), TOP + SIDE);
    rule("rule", LEFT, up(value), LEFT + SIDE, up(value));
    label(across(value), TOP + SIDE + 15, texts[at], "middle");
    label(LEFT - 6, up(value) + 4, texts[at], "end");
  }
  label(LEFT - 6, TOP - 10, data.y_label, "start");
  label(LEFT + SIDE / 2, TOP + SIDE + 36, data.x_label, "middle");
  rule("level", LEFT, TOP + SIDE, LEFT + SIDE, TOP);

  const items = data.names.map((name, at) => {
    const place = { cx: across(data.x[at]), cy: up(data.y[at]), r: 4 };
    return svg("circle", { ...place, class: "point", role: "option", "aria-label": spoken(at) });
  });
  picture.append(...[...items].reverse()); // the farthest are drawn last
  const name = el("h4", { dir: "auto" }, "");
  const [x, y, apart] = [el("td"), el("td"), el("td")];
  const row = (title, cell) => el("tr", {}, el("th", {}, title), cell);
  const rows = [row(data.x_label, x), row(data.y_label, y), row("difference", apart)];
  const table = el("table", { class: "readout" }, el("tbody", {}, ...rows));
  body.append(picture, el("div", {}, name, table));

  const choice = selection((place, locked) => {
    items.forEach((item, at) => item.classList.toggle("shown", at === place));
    items.forEach((item, at) => item.setAttribute("aria-selected", String(at === place && locked)));
    name.textContent = data.names[place];
    x.textContent = print(data.x[place]);
    y.textContent = print(data.y[place]);
    apart.textContent = print(data.y[place] - data.x[place]);
    say(ending(spoken(place), locked));
  }, 0);
  roving(picture, items, 1, choice);
  choice.show(0);

  function spoken(at) {
    const both = `${data.x_label} ${print(data.x[at])}, ${data.y_label} ${print(data.y[at])}`;
    return `${isolate(data.names[at])}: ${both}`;
  }

  function rule(kind, x1, y1, x2, y2) {
    picture.append(svg("line", { x1, y1, x2, y2, class: kind }));
  }

  function label(x, y, text, anchor) {
    const node = svg("text", { x, y, "text-anchor": anchor });
    node.textContent = text;
    picture.append(node);
  }
}

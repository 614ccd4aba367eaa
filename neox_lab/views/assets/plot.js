// A plot of lines, as curves.js says; the explorer has it in panels.

/** Fill `body` with a plot: `say` reads a place aloud, `pick` is told which one was clicked. */
function plot(body, data, say, pick = () => {}) {
  const [WIDE, LEFT, TOP, BOTTOM] = [room(body, 560), 52, 24, 46];
  const xs = [...new Set(data.lines.flatMap((line) => line.x))].sort((a, b) => a - b);
  const levels = Object.entries(data.levels);
  const several = data.panels.length > 1;
  const named = several && WIDE > 480; // at their ends; else only below
  const [HIGH, RIGHT] = [several ? 180 : 260, named ? 130 : 16];
  const total = HIGH * data.panels.length;
  const [first, last] = [xs[0], xs[xs.length - 1]];
  const share = (x) => (first === last ? 0.5 : (x - first) / (last - first));
  const across = (x) => LEFT + share(x) * (WIDE - LEFT - RIGHT);
  const up = (y, panel) => {
    const [least, most] = data.ranges[panel];
    return HIGH * (panel + 1) - BOTTOM - ((y - least) / (most - least)) * (HIGH - TOP - BOTTOM);
  };

  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${total}`, class: "plot", role: "img" });
  picture.setAttribute("aria-label", `${data.y_label} over ${data.x_label}; arrow keys read it`);
  picture.style.width = `${WIDE}px`;
  picture.tabIndex = 0;
  data.panels.forEach((name, panel) => axes(name, panel));
  for (const [, value] of levels) {
    const y = up(value, 0);
    picture.append(svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y, y2: y, class: "level" }));
  }
  const groups = data.lines.map((line) => draw(line));
  if (named) data.panels.forEach((_, panel) => nameEnds(panel));
  const cursor = svg("line", { y1: TOP, y2: total - BOTTOM, class: "cursor" });
  picture.append(cursor);

  const values = data.lines.map(() => el("td"));
  const rows = data.lines.map((line, at) => {
    const swatch = svg("svg", { width: 30, height: 10 });
    const style = { stroke: line.colour, "stroke-dasharray": line.dash };
    swatch.append(svg("line", { x1: 0, x2: 30, y1: 5, y2: 5, "stroke-width": 2.5, ...style }));
    const toggle = el("button", { type: "button", "aria-pressed": "true" }, el("bdi", {}, line.name));
    toggle.addEventListener("click", () => {
      const shown = toggle.getAttribute("aria-pressed") !== "true";
      toggle.setAttribute("aria-pressed", String(shown));
      groups[at].style.display = shown ? "" : "none";
    });
    return el("tr", {}, el("td", {}, swatch), el("th", {}, toggle), values[at]);
  });
  const fixed = levels.map(([name, value]) =>
    el("tr", {}, el("td", {}, "- - -"), el("th", {}, el("bdi", {}, name)), el("td", {}, print(value))),
  );
  const place = el("h4", {}, "");
  const table = el("table", { class: "readout" }, el("tbody", {}, ...rows, ...fixed));
  body.append(picture, el("div", {}, place, table));

  let at = xs.length - 1;
  let locked = false;
  const show = (next) => {
    at = Math.max(0, Math.min(xs.length - 1, next));
    const x = across(xs[at]);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const name = data.x_names ? isolate(data.x_names[xs[at]]) : print(xs[at]);
    place.textContent = `${data.x_label} ${name}`;
    const spoken = data.lines.map((line, number) => {
      const index = line.x.indexOf(xs[at]);
      const text = index < 0 || line.y[index] === null ? "–" : print(line.y[index]);
      const interval = index >= 0 && line.low[index] !== null;
      const around = interval ? ` [${print(line.low[index])}, ${print(line.high[index])}]` : "";
      values[number].textContent = text + around;
      return `${isolate(line.name)} ${text}${around}`;
    });
    say(ending(`${place.textContent}: ${spoken.join("; ")}`, locked));
  };
  picture.addEventListener("pointermove", (event) => {
    if (locked) return;
    const box = picture.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * WIDE;
    const apart = xs.map((value) => Math.abs(across(value) - x));
    show(apart.indexOf(Math.min(...apart)));
  });
  const lock = (wanted) => {
    locked = wanted;
    show(at);
  };
  picture.addEventListener("click", () => {
    lock(!locked);
    pick(xs[at]);
  });
  picture.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (step) show(at + step);
    else if (event.key === "Enter") {
      lock(!locked);
      pick(xs[at]);
    } else if (event.key === "Escape") lock(false);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  show(at);

  function axes(name, panel) {
    const [start, end] = [HIGH * panel, HIGH * (panel + 1)];
    const heights = ticks(...data.ranges[panel], several ? 3 : 5);
    const texts = tickTexts(heights);
    for (const [at, value] of heights.entries()) {
      const y = up(value, panel);
      picture.append(svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y, y2: y, class: "rule" }));
      label(LEFT - 6, y + 4, texts[at], "end");
    }
    const [full, names] = [WIDE - LEFT - RIGHT, data.x_names];
    const longest = names && Math.max(...names.map((text) => text.length));
    const every = names && Math.ceil((names.length * (longest + 2) * 6) / full);
    const few = Math.max(2, Math.round((6 * full) / 492));
    const places = names ? [...names.keys()].filter((x) => x % every === 0) : ticks(first, last, few);
    const said = names ? places.map((x) => names[x]) : tickTexts(places);
    for (const [at, x] of places.entries()) {
      const anchor = across(x) > WIDE - RIGHT - 40 ? "end" : across(x) < LEFT + 20 ? "start" : "middle";
      label(across(x), end - BOTTOM + 15, said[at], anchor);
    }
    label(LEFT - 6, start + TOP - 11, name, "start");
    if (end === total) label((LEFT + WIDE - RIGHT) / 2, end - 8, data.x_label, "middle");
    const axis = { x1: LEFT, x2: WIDE - RIGHT, y1: end - BOTTOM, y2: end - BOTTOM };
    picture.append(svg("line", { ...axis, class: "axis" }));
  }

  function label(x, y, text, anchor) {
    const node = svg("text", { x, y, "text-anchor": anchor });
    node.textContent = text;
    picture.append(node);
  }

  /** The name of each line of a panel where it ends, from the highest to the lowest. */
  function nameEnds(panel) {
    const ends = data.lines
      .filter((line) => line.panel === panel && line.y.some((value) => value !== null))
      .map((line) => [up(line.y.filter((value) => value !== null).pop(), panel), line.end])
      .sort(([a], [b]) => a - b);
    let free = HIGH * panel + TOP;
    for (const [y, name] of ends) {
      const at = Math.max(free, y + 4);
      label(WIDE - RIGHT + 6, at, name, "start");
      free = at + 13;
    }
  }

  function draw(line) {
    const group = svg("g", { class: line.faint ? "faint" : "" });
    const there = line.x.map((_, at) => at).filter((at) => line.y[at] !== null);
    const path = (of, order) => order.map((at) => `${across(line.x[at])},${up(of[at], line.panel)}`);
    const banded = there.filter((at) => line.low[at] !== null && line.high[at] !== null);
    if (banded.length) {
      const points = [...path(line.low, banded), ...path(line.high, [...banded].reverse())];
      group.append(svg("polygon", { points: points.join(" "), fill: line.colour, class: "band" }));
    }
    const style = { stroke: line.colour, "stroke-dasharray": line.dash };
    group.append(svg("polyline", { points: path(line.y, there).join(" "), class: "curve", ...style }));
    if (there.length === 1) {
      const [at] = there; // one point makes no line
      const cx = across(line.x[at]);
      group.append(svg("circle", { cx, cy: up(line.y[at], line.panel), r: 4, fill: line.colour }));
      if (banded.length) {
        const [y1, y2] = [up(line.low[at], line.panel), up(line.high[at], line.panel)];
        group.append(svg("line", { x1: cx, x2: cx, y1, y2, stroke: line.colour }));
      }
    }
    picture.append(group);
    return group;
  }
}

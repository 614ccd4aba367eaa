// Panels of the explorer that need nothing but the run: tokens, candidates, lens, heads, parts.
// A panel is made once; what it returns is called whenever the one state changes.

const AMOUNT = (share) => viridis(share);
const number = (value, digits = 2) => {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
};
const percent = (share) => (share < 0.0995 ? `${(100 * share).toFixed(1)} %` : `${Math.round(100 * share)} %`);

/** One state that all panels read and write. */
function makeStore(first, tell) {
  const acts = [];
  const state = { ...first };
  return {
    state,
    on: (act) => acts.push(act),
    draw: () => acts.forEach((act) => act(state)),
    set(change) {
      Object.assign(state, change);
      acts.forEach((act) => act(state));
      tell(state);
    },
  };
}

/** A frame with a name, one sentence, a "?" and buttons that save; `tell` are its keys in words. */
function card(name, sentence, { keys, save, wide } = {}) {
  const body = el("div", { class: "inside" });
  const help = el("p", { class: "note", hidden: "" }, keys || "");
  const ask = el("button", { type: "button", class: "mini", "aria-expanded": "false" }, "?");
  ask.setAttribute("aria-label", `Keys: ${name}`);
  ask.addEventListener("click", () => {
    help.hidden = !help.hidden;
    ask.setAttribute("aria-expanded", String(!help.hidden));
  });
  const tools = el("span", { class: "tools" }, ...(save ? save.map((button) => button) : []), ...(keys ? [ask] : []));
  const said = el("p", { class: "note" }, sentence);
  const node = el("section", { class: `card${wide ? " wide" : ""}`, "aria-label": name });
  node.append(el("h4", {}, name, tools), said, help, body);
  return { node, body, say: (text) => (said.textContent = text) };
}

/** Mark what is selected, for the eye by a class and for the ear too. */
function current(node, name, chosen) {
  node.classList.toggle(name, chosen);
  if (chosen) node.setAttribute("aria-current", "true");
  else node.removeAttribute("aria-current");
}

/** New children for a node; what now stands where the focus was has it again. */
function refill(node, children) {
  const focused = [...node.children].indexOf(node.getRootNode().activeElement);
  node.replaceChildren(...children);
  children[focused]?.focus();
}

/** A row of buttons of which one is pressed. */
function switches(name, options, chosen, choose) {
  const group = el("div", { class: "switches", role: "group", "aria-label": name });
  const draw = (now) => {
    const buttons = options().map(([value, text, why]) => {
      const button = el("button", { type: "button", "aria-pressed": String(value === now) }, text);
      if (why) Object.assign(button, { disabled: true, title: why });
      button.addEventListener("click", () => choose(value));
      return button;
    });
    refill(group, buttons);
  };
  draw(chosen);
  return { group, draw };
}

/** The tokens of the prompt, and below them those of the second one. */
function tokensPanel(run, store) {
  const row = (reading, name) => {
    const strip = el("div", { class: "tokens", role: "group", "aria-label": name });
    const items = reading.pieces.map((piece, at) => {
      const item = el("button", { type: "button", class: "token" }, el("bdi", {}, piece));
      item.setAttribute("aria-label", `${isolate(piece)}, token ${at} of ${name}`);
      return item;
    });
    strip.append(...items);
    const pick = (at) => store.set({ position: Math.min(at, run.reading.pieces.length - 1) });
    roving(strip, items, 0, { show: () => {}, lock: pick, unlock: () => {} });
    return { strip, items };
  };
  const node = el("div", { class: "card wide" });
  const first = row(run.reading, "the prompt");
  let second = null;
  let drawn = null;
  const draw = (state) => {
    if (run.second !== drawn) {
      drawn = run.second;
      second?.strip.remove();
      second = drawn && row(drawn, "the second prompt");
      if (second) node.append(second.strip);
    }
    const panel = run.head(state.layer, state.head);
    first.items.forEach((item, at) => {
      const weight = panel ? panel.weight(state.position, at) : 0;
      fill(item, weight > 0.02 ? mix(ground, BLUE, Math.sqrt(weight)) : null);
      current(item, "chosen", at === state.position);
      item.classList.toggle("key", at === state.key);
      item.classList.toggle("unseen", at > state.position && run.reading.attention.causal);
    });
    second?.items.forEach((item, at) => {
      current(item, "chosen", at === state.position);
      item.classList.toggle("other", run.second.pieces[at] !== run.reading.pieces[at]);
    });
  };
  node.append(first.strip);
  store.on(draw);
  return node;
}

/** What comes after the selected token, read off at the selected row of the lens. */
function candidatesPanel(run, store, save) {
  const { node, body, say } = card("What comes next", "", { save: save("candidates") });
  const bar = (share, colour) => el("i", { style: { width: `${100 * share}%`, background: css(colour) } });
  store.on((state) => {
    const { lens, pieces } = run.shown(state);
    const last = lens.rows.length - 1;
    const changed = state.row === last && run.shown(state) === run.reading && run.parts.switched;
    const found = new Map(lens.candidates[state.row][state.position]);
    const other = changed ? new Map(changed.candidates[state.position]) : null;
    const names = [...found.keys()].slice(0, 8);
    if (other) for (const name of [...other.keys()].slice(0, 4)) if (!names.includes(name)) names.push(name);
    const rows = names.map((name) => {
      const track = el("td", {}, found.has(name) ? bar(found.get(name), [33, 145, 140]) : "");
      const cells = [el("td", {}, found.has(name) ? percent(found.get(name)) : "less"), track];
      if (other) {
        track.append(other.has(name) ? bar(other.get(name), ORANGE) : "");
        cells.splice(1, 0, el("td", { class: "after" }, other.has(name) ? percent(other.get(name)) : "less"));
      }
      return el("tr", {}, el("th", { dir: "auto" }, name), ...cells);
    });
    const where = state.row === last ? "at the end of the model" : `at ${lens.rows[state.row]}`;
    say(`After ${isolate(pieces[state.position])}, read off ${where}; bars run from 0 to 100 %.` +
      (other ? ` Orange: ${changed.name}.` : ""));
    body.replaceChildren(el("table", { class: "bars hundred" }, el("tbody", {}, ...rows)));
  });
  return node;
}

/** Layers by positions: the likeliest next token in each cell. */
function lensPanel(run, store, save) {
  const { node, body } = card(
    "Logit lens",
    "What the model would say if it stopped there: a row is a layer, the first on top. A click also shows who wrote it.",
    { keys: "Arrows move, Enter selects a cell: its position and its layer.", save: save("lens"), wide: true },
  );
  const { rows } = run.reading.lens;
  const count = run.reading.pieces.length;
  const cells = [];
  const table = el("table", { role: "grid", class: "grid lens", "aria-label": "logit lens" });
  const heads = run.reading.pieces.map((piece) => el("th", { scope: "col", title: piece }, el("bdi", {}, piece)));
  table.append(el("thead", {}, el("tr", {}, el("th", { class: "corner" }, axisNames("layer", "after")), ...heads)));
  const names = rows.map((row) => el("th", { scope: "row" }, row));
  const lines = names.map((name) => {
    const own = run.reading.pieces.map(() => {
      const cell = el("td", { role: "gridcell" }, el("bdi", {}, ""));
      cells.push(cell);
      return cell;
    });
    return el("tr", {}, name, ...own);
  });
  table.append(el("tbody", {}, ...lines));
  const pick = (place) => {
    const row = Math.floor(place / count);
    store.set({ row, position: place % count, layer: Math.max(0, Math.min(row - 1, run.layers - 1)) });
  };
  roving(table, cells, count, { show: () => {}, lock: pick, unlock: () => {} });
  const key = el("div");
  let drawn = null;
  let marked = null;
  const scroll = scrolling([table], () => marked);
  body.append(scroll.node, key);
  store.on((state) => {
    const shown = run.readable(state.shown);
    const token = [shown, run.reading, run.second];
    if (!drawn || token.some((part, at) => part !== drawn[at])) fillCells(shown);
    drawn = token;
    if (marked) current(marked, "at", false);
    marked = cells[state.row * count + state.position];
    current(marked, "at", true);
    scroll.reveal();
    heads.forEach((head, at) => head.classList.toggle("at", at === state.position));
    names.forEach((name, at) => name.classList.toggle("at", at === state.row));
  });

  function fillCells(shown) {
    const reading = shown === "second" ? run.second : run.reading;
    heads.forEach((head, at) => {
      head.title = head.firstChild.textContent = reading.pieces[at];
    });
    rows.forEach((name, row) =>
      run.reading.pieces.forEach((_, position) => {
        const cell = cells[row * count + position];
        const best = reading.lens.candidates[row][position];
        const change = shown === "difference" ? run.second.change[row][position] : null;
        const [text, share] = best ? best[0] : ["", 0];
        const value = change === null ? percent(share) : `${number(100 * change, 0)} %`;
        cell.firstChild.textContent = change === null ? text : value;
        fill(cell, change === null ? AMOUNT(share) : signed(0.5 + change / 2));
        const said = change === null ? `${isolate(text)} ${value}` : `${value} for ${isolate(run.reading.about[position])}`;
        cell.title = `${name}, after ${isolate(reading.pieces[position])}@${position}: ${said}`;
        cell.setAttribute("aria-label", cell.title);
      }),
    );
    key.replaceChildren(
      shown === "difference"
        ? el("div", { class: "scale" }, "−100 %", rampBar(signed), "100 %", " second minus first: probability of what the first expects at its end")
        : el("div", { class: "scale" }, "0", rampBar(AMOUNT), "100 %", " probability of the likeliest next token"),
    );
  }
  return node;
}

/** What can be shown of each head: how it is called, its value, and from where to where it goes. */
function headMeasures(run, state) {
  const measured = (which) => (panel) => panel.measures[which];
  const bits = Math.log2(Math.max(2, run.reading.pieces.length));
  const found = [
    { name: "looks at the selected token", of: (panel, state) => panel.weight(state.position, state.key ?? state.position), most: 1, colour: weightColour },
    { name: "entropy (bits)", of: measured(0), most: bits, colour: AMOUNT },
    { name: "on the first token", of: measured(1), most: 1, colour: weightColour },
    { name: "on the previous token", of: measured(2), most: 1, colour: weightColour },
  ];
  const { shares } = run.shown(state);
  if (shares) {
    const heads = shares.where.map((at, part) => (at && at[1] !== null ? part : null)).filter((part) => part !== null);
    const most = Math.max(...shares.values.map((row) => Math.max(...heads.map((part) => Math.abs(row[part])))));
    const part = new Map(heads.map((at) => [shares.where[at].join("."), at]));
    const of = (panel, state) => shares.values[state.position][part.get(`${panel.layer}.${panel.head}`)];
    found.push({ name: "share of the logit", of, most, signed: true });
  }
  for (const [name, effect] of Object.entries(run.parts.effects || {})) {
    const flat = effect.values.flat().filter((value) => value !== null);
    const most = Math.max(...flat.map(Math.abs)) || 1;
    const of = (panel) => effect.values[panel.layer][panel.head];
    found.push({ name, of, most: effect.signed ? most : 1, signed: effect.signed, colour: AMOUNT, note: effect.note });
  }
  return found;
}

/** Layers by heads, coloured by the measure chosen. */
function headsPanel(run, store, save, live) {
  const { node, body, say } = card("Heads", "", {
    keys: "Arrows move between heads, Enter selects one; its pattern and its share follow.",
    save: save("heads"),
  });
  const choose = el("select", { "aria-label": "measure of heads" });
  const { layers, heads } = run.reading.attention;
  const grid = el("div", { class: "headgrid", role: "group", "aria-label": "heads" });
  grid.style.gridTemplateColumns = `max-content repeat(${heads.length}, minmax(12px, 44px))`;
  grid.append(el("span", {}, axisNames("layer", "head")), ...heads.map((head) => el("span", {}, String(head))));
  const places = layers.flatMap((layer) => heads.map((head) => ({ layer, head })));
  const items = places.map(() => el("button", { type: "button", class: "cell" }));
  layers.forEach((layer, row) =>
    grid.append(el("span", {}, String(layer)), ...items.slice(row * heads.length, (row + 1) * heads.length)),
  );
  roving(grid, items, heads.length, { show: () => {}, lock: (at) => store.set(places[at]), unlock: () => {} });
  const key = el("div");
  body.append(el("label", {}, "colour: ", choose), grid, key, ...live);
  choose.addEventListener("change", () => store.set({ measure: choose.value }));
  let measures = [];
  store.on((state) => {
    const shown = run.readable(state.shown);
    measures = headMeasures(run, state);
    const names = measures.map((measure) => measure.name);
    if (names.join("|") !== [...choose.options].map((option) => option.value).join("|"))
      choose.replaceChildren(...names.map((name) => el("option", { value: name }, name)));
    const measure = measures.find((one) => one.name === state.measure) || measures[0];
    choose.value = measure.name;
    const about = isolate(run.shown(state).about[state.position]);
    say(measure.note || (measure.name === "share of the logit"
      ? `What each head writes straight into the logit of ${about}, in logits.`
      : "A cell is a head; the selected one's pattern has a panel of its own."));
    const colour = measure.signed ? (share) => signed(0.5 + share / 2) : measure.colour;
    items.forEach((item, at) => {
      const panel = run.head(places[at].layer, places[at].head, shown === "second" ? "second" : "first");
      const value = panel ? measure.of(panel, state) : null;
      const known = value !== null && value !== undefined && Number.isFinite(value);
      fill(item, known ? colour(value / measure.most) : [217, 217, 217]);
      item.textContent = known && heads.length <= 8 ? number(value, Math.abs(measure.most) >= 10 ? 1 : 2) : "";
      item.title = `${headName(places[at].layer, places[at].head)}: ${known ? number(value, 3) : "not measured"}`;
      item.setAttribute("aria-label", item.title);
      current(item, "at", places[at].layer === state.layer && places[at].head === state.head);
    });
    const ends = measure.signed ? [number(-measure.most), number(measure.most)] : ["0", number(measure.most)];
    key.replaceChildren(el("div", { class: "scale" }, ends[0], rampBar(measure.signed ? (s) => colour(2 * s - 1) : colour), ends[1], ` ${measure.name}`));
  });
  return node;
}

/** Who wrote the logit of what is expected after the selected token. */
function partsPanel(run, store, save) {
  const { node, body, say } = card("Who wrote this logit", "", {
    keys: "Arrows move, Enter selects the head or the layer.",
    save: save("parts"),
  });
  const limit = 14;
  const chart = el("div", { class: "chart", role: "group", "aria-label": "parts of the model" });
  body.append(chart);
  store.on((state) => {
    const { shares, about } = run.shown(state);
    if (!shares) return chart.replaceChildren(); // they do not add up here
    const most = Math.max(...shares.values.map((row) => Math.max(...row.map(Math.abs)))) || 1;
    const values = shares.values[state.position];
    const written = (part) => !shares.where[part] || shares.where[part][0] < state.row;
    const best = values.map((_, part) => part).sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
    const total = values.reduce((sum, value) => sum + value, 0);
    say(`Shares of the logit of ${isolate(about[state.position])} (${number(total)} in all), layer norm held as it was. ` +
      (state.row < run.reading.lens.rows.length - 1 ? `Faint: written after ${run.reading.lens.rows[state.row]}.` : `The largest ${Math.min(limit, values.length)} of ${values.length}; all of them sum to it.`));
    const focused = chart.contains(chart.getRootNode().activeElement);
    const items = best.slice(0, limit).map((part) => {
      const share = values[part] / most;
      const bar = el("i", { class: share < 0 ? "less" : "more" });
      Object.assign(bar.style, { left: `${50 + Math.min(0, 50 * share)}%`, width: `${50 * Math.abs(share)}%` });
      const line = el("div", { class: "line", role: "button", "aria-label": `${shares.names[part]}: ${number(values[part])}` },
        el("bdi", { class: "name" }, shares.names[part]), el("span", { class: "track half" }, bar),
        el("span", { class: "value" }, number(values[part])));
      const at = shares.where[part];
      line.classList.toggle("faint", !written(part));
      current(line, "shown", Boolean(at) && at[0] === state.layer && at[1] === state.head);
      return [line, at];
    });
    chart.replaceChildren(...items.map(([line]) => line));
    const pick = (place) => {
      const at = items[place][1];
      if (at) store.set({ layer: at[0], ...(at[1] === null ? {} : { head: at[1] }) });
    };
    // One listener for the group would outlive its lines: each gets its own.
    items.forEach(([line], place) => {
      line.tabIndex = place ? -1 : 0;
      line.addEventListener("click", () => pick(place));
      line.addEventListener("keydown", (event) => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (step && items[place + step]) items[place + step][0].focus();
        else if (event.key === "Enter" || event.key === " ") pick(place);
        else return;
        event.preventDefault();
        event.stopPropagation();
      });
    });
    if (focused && items.length) items[0][0].focus();
  });
  return node;
}

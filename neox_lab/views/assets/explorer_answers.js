// Panels of the explorer that show a pattern, say things in words, and show what was asked for.

/** The selected head: a map or lines, of the first prompt, the second, or their difference. */
function patternPanel(run, store, save) {
  const { node, body, say } = card("The selected head", "", {
    keys: "Click a cell of the map to select its query and its key; or arrows move there, and Enter selects both.",
    save: save("pattern"),
  });
  const forms = switches("form", () => [[false, "map"], [true, "lines"]], false, (lines) => store.set({ lines }));
  const stage = el("div");
  const reading = el("p", { class: "note", "aria-live": "polite" }, "");
  body.append(forms.group, stage, reading);
  const pick = (query, key) => store.set({ position: query, key });
  const point = (query, key) => {
    const panel = run.head(store.state.layer, store.state.head, side());
    if (!panel) return;
    const { pieces } = run.shown(store.state);
    reading.textContent = `${isolate(pieces[query])}@${query} → ${isolate(pieces[key])}@${key}: ${number(panel.weight(query, key), 3)}`;
  };
  const side = () => (run.readable(store.state.shown) === "second" ? "second" : "first");
  const maps = new Map();
  const mapOf = (shown) => {
    if (!maps.has(shown)) {
      const data = { ...(shown === "second" ? run.second : run.reading).attention };
      const scale = shown === "difference" ? { scale: rampBar(signed), ends: ["−1", "1"] } : {};
      maps.set(shown, largeMap(data, point, { pick, most: 320, ...scale }));
    }
    return maps.get(shown);
  };
  store.on((state) => {
    const shown = run.readable(state.shown);
    forms.draw(state.lines);
    const panel = run.head(state.layer, state.head, side());
    const name = headName(state.layer, state.head);
    if (!panel) {
      say(`${name} is not among the patterns kept here; ask for fewer tokens or look with nl.views.attention.`);
      stage.replaceChildren();
      return;
    }
    say(`${name}: ${measured(panel)}.`);
    if (state.lines) return stage.replaceChildren(lines(panel, state));
    const map = mapOf(shown);
    if (stage.firstChild !== map.node) stage.replaceChildren(map.node);
    if (shown === "difference") map.show(difference(state), state.position, changes());
    else map.show(panel, state.position);
    map.cross(state.position, state.key ?? state.position);
  });

  function difference(state) {
    const [one, two] = ["first", "second"].map((which) => run.head(state.layer, state.head, which));
    const scale = 127 / run.reading.attention.top;
    const bytes = one.weights.map((byte, at) =>
      Math.max(0, Math.min(254, 127 + Math.round((two.weights[at] / 255) * run.second.attention.top * scale - (byte / 255) * 127))));
    return { ...one, name: `${headWords(state.layer, state.head)}, second minus first`, weights: bytes };
  }

  function lines(panel, state) {
    const { pieces } = run.shown(state);
    const first = Math.max(0, Math.min(state.position - 24, pieces.length - 32));
    const shown = pieces.slice(first, first + 32);
    const high = 17;
    const drawing = svg("svg", { viewBox: `0 0 340 ${shown.length * high + 6}`, class: "lines", "aria-hidden": "true" });
    const place = (at) => (at - first + 0.72) * high;
    const column = (x, anchor, act) =>
      shown.forEach((piece, at) => {
        const text = svg("text", { x, y: place(at + first), "text-anchor": anchor });
        text.textContent = piece;
        text.addEventListener("click", () => act(at + first));
        if (at + first === state.position && anchor === "end") text.classList.add("at");
        drawing.append(text);
      });
    for (let query = first; query < first + shown.length; query++)
      for (let key = first; key <= query; key++) {
        const weight = panel.weight(query, key);
        const own = query === state.position;
        if (weight < (own ? 0.01 : 0.08)) continue;
        const line = svg("line", { x1: 124, y1: place(query) - 4, x2: 216, y2: place(key) - 4, "stroke-opacity": own ? Math.sqrt(weight) : 0.35 * weight });
        line.classList.toggle("own", own);
        drawing.append(line);
      }
    column(118, "end", (position) => store.set({ position }));
    column(222, "start", (key) => store.set({ key }));
    return drawing;
  }
  return node;
}

const changes = () => new Uint32Array(256).map((_, byte) => pixel(signed(byte / 254)));

/** What is selected, in sentences, and what can be done with it. */
function wordsPanel(run, store, live) {
  const { node, body } = card("In words", "");
  const text = el("div");
  body.append(text, ...live);
  store.on((state) => {
    const { lens, about, shares, pieces } = run.shown(state);
    const token = (at) => `${isolate(pieces[at])}@${at}`;
    const at = lens.candidates[state.row][state.position][0];
    const end = lens.candidates[lens.rows.length - 1][state.position][0];
    const said = [
      `After ${token(state.position)} the model expects ${isolate(end[0])} (${percent(end[1])})` +
        (state.row < lens.rows.length - 1 ? `; at ${lens.rows[state.row]} it would say ${isolate(at[0])} (${percent(at[1])}).` : "."),
    ];
    const panel = run.head(state.layer, state.head, run.readable(state.shown));
    if (panel) {
      const looked = pieces.map((_, key) => [panel.weight(state.position, key), key]).filter(([weight]) => weight >= 0.05);
      looked.sort((a, b) => b[0] - a[0]);
      const named = looked.slice(0, 3).map(([weight, key]) => `${token(key)} (${number(weight)})`).join(", ");
      said.push(`${headName(state.layer, state.head)} looks from there at ${named || "many tokens, at none with more than 0.05"}.`);
    }
    if (shares) {
      const part = shares.where.findIndex((where) => where && where[0] === state.layer && where[1] === state.head);
      const values = shares.values[state.position];
      const rank = values.filter((value) => Math.abs(value) > Math.abs(values[part])).length + 1;
      if (part >= 0) said.push(`It writes ${number(values[part])} into the logit of ${isolate(about[state.position])}: number ${rank} of ${values.length} parts by size.`);
    }
    text.replaceChildren(...said.map((sentence) => el("p", {}, sentence)));
  });
  return node;
}

/** Which tokens the prediction rests on. */
function attributionPanel(run, store, save, live) {
  const sentence = "What the prediction loses without each token.";
  const { node, body, say } = card("Which tokens matter", sentence, { save: save("attribution") });
  const strip = el("div", { class: "tokens" });
  body.append(...live, strip);
  store.on(() => {
    const found = run.parts.attribution;
    if (!found) {
      say(sentence);
      return strip.replaceChildren();
    }
    say(`${found.note} Orange speaks for it, blue against; full colour is ±${number(Math.max(...found.values.map(Math.abs)))}.`);
    const most = Math.max(...found.values.map(Math.abs)) || 1;
    refill(
      strip,
      found.values.map((value, at) => {
        const item = el("button", { type: "button", class: "token" }, el("bdi", {}, run.reading.pieces[at]), el("small", {}, number(value)));
        fill(item, signedTint(value, most));
        item.addEventListener("click", () => store.set({ key: at }));
        return item;
      }),
    );
  });
  return node;
}

/** Where the difference between two prompts travels. */
function patchingPanel(run, store, save, live) {
  const needs = "Give a second prompt of as many tokens to see where the difference travels.";
  const asks = "Where the difference to the second prompt travels: choose what is taken from it, at each layer and token.";
  const sentence = () => (run.second && run.second.pieces.length === run.reading.pieces.length ? asks : needs);
  const { node, body, say } = card("Patching from the second prompt", "", {
    keys: "Arrows move, Enter or a click selects a cell: its layer and its position.",
    save: save("patching"),
    wide: true,
  });
  let drawn = null;
  let cells = [];
  const scroll = scrolling([], () => cells.map(([cell]) => cell).find((cell) => cell.classList.contains("at")));
  const stage = scroll.node;
  body.append(...live, stage);
  store.on((state) => {
    const found = run.parts.patching;
    if (drawn !== found) draw(found);
    drawn = found;
    if (!found) say(sentence());
    cells.forEach(([cell, layer, position]) => current(cell, "at", layer === state.layer && position === state.position));
    scroll.reveal();
  });

  function draw(found) {
    cells = [];
    if (!found) return stage.replaceChildren(); // of another prompt
    say(found.note);
    const rows = found.values.map((line, layer) => {
      const own = line.map((value, position) => {
        const title = `layer ${layer}, ${isolate(run.reading.pieces[position])}@${position}: ${value === null ? "not measured" : number(value)}`;
        const cell = el("td", { role: "gridcell", title, "aria-label": title },
          value === null || found.values[0].length > 24 ? "" : number(value));
        fill(cell, value === null ? [217, 217, 217] : signed(0.5 + value / 2));
        cells.push([cell, layer, position]);
        return cell;
      });
      return el("tr", {}, el("th", { scope: "row" }, String(layer)), ...own);
    });
    const heads = run.reading.pieces.map((piece) => el("th", { scope: "col" }, el("bdi", {}, piece)));
    const table = el("table", { role: "grid", class: "grid upright", "aria-label": "patching" },
      el("thead", {}, el("tr", {}, el("th", { class: "corner" }, axisNames("layer", "token")), ...heads)), el("tbody", {}, ...rows));
    const pick = (place) => store.set({ layer: cells[place][1], position: cells[place][2] });
    roving(table, cells.map(([cell]) => cell), found.values[0].length, { show: () => {}, lock: pick, unlock: () => {} });
    stage.replaceChildren(table, el("div", { class: "scale" }, "−1", rampBar(signed), "1", " share of the difference that comes back"));
  }
  return node;
}

/** What the model writes on, with alternatives to branch off. */
function writingPanel(run, store, save, live, emit) {
  const { node, body, say } = card("What it writes on", "The prompt continued, the likeliest token each time. A token opens its alternatives; one of them begins a branch.", { save: save("writing") });
  const strip = el("div", { class: "tokens" });
  const side = el("div", { class: "side" });
  const branches = el("div");
  body.append(...live, branches, strip, side);
  let drawn = null;
  let opened = 0; // the token whose alternatives were looked at last
  store.on(() => {
    const found = run.parts.writing;
    if (drawn === found) return;
    drawn = found;
    if (!found) return [branches, strip, side].forEach((part) => part.replaceChildren()); // of another run
    if (found.branches.length > 1)
      branches.replaceChildren(switches("branches", () => found.branches.map((name, at) => [at, name]), found.shown, (choice) => emit("show", { choice })).group);
    else branches.replaceChildren();
    const open = (at) => {
      opened = at;
      const { text, alternatives } = found.tokens[at];
      const buttons = alternatives.map(([other, share], rank) => {
        const button = el("button", { type: "button", class: "mini choose" }, `${isolate(other)} ${percent(share)}`);
        button.disabled = !emit.live || other === text;
        button.addEventListener("click", () => emit("branch", { position: at, rank }));
        return button;
      });
      side.replaceChildren(el("p", { class: "note" }, `Instead of ${isolate(text)}:`), ...buttons);
    };
    const items = found.tokens.map(({ text, share }, at) => {
      const item = el("button", { type: "button", class: "token" }, el("bdi", {}, text), el("small", {}, percent(share)));
      fill(item, amount(DEEPEST * share));
      item.addEventListener("click", () => open(at));
      return item;
    });
    const chosen = side.contains(side.getRootNode().activeElement); // a branch that now is shown
    refill(strip, items);
    side.replaceChildren();
    if (chosen) items[opened]?.focus();
  });
  return node;
}

// How the panels of explorer_opened.js are drawn; what a function returns is called with each state.

/** A line of words below a picture, which is read aloud. */
function heard(stage) {
  const words = el("p", { class: "note heard", role: "status", "aria-live": "polite" });
  queueMicrotask(() => stage.append(words)); // below what is drawn now
  return (text) => (words.textContent = text);
}

/** What is active at the selected token, and where the selected feature is active. */
function drawFeatures(stage, found, run, store) {
  const table = el("table", { class: "featured" });
  const strip = el("div", { class: "tokens" });
  const where = el("p", { class: "note" });
  stage.append(table, el("div", {}, where, strip));
  const flat = found.rows.flat();
  const [largest, strongest] = [1, 2].map((at) => Math.max(...flat.map((row) => Math.abs(row[at]))) || 1);
  const title = (latent) => `f${latent}`;
  return (state) => {
    const rows = found.rows[state.position] || [];
    const known = flat.some(([latent]) => latent === state.feature);
    const chosen = known ? state.feature : rows.length ? rows[0][0] : null;
    const focused = table.contains(table.getRootNode().activeElement);
    const buttons = rows.map(([latent]) => el("button", { type: "button", "aria-pressed": String(latent === chosen) }, title(latent)));
    const lines = rows.map(([latent, activation, effect], at) => {
      const share = Math.abs(effect) / strongest;
      const bar = el("i", { class: effect < 0 ? "less" : "more" });
      Object.assign(bar.style, { left: `${effect < 0 ? 50 - 50 * share : 50}%`, width: `${50 * share}%` });
      const size = el("i", { style: { width: `${(100 * Math.abs(activation)) / largest}%` } });
      return el("tr", {}, el("th", {}, buttons[at]),
        el("td", { class: "number" }, number(activation)), el("td", {}, el("span", { class: "track" }, size)),
        el("td", { class: "number" }, number(effect)), el("td", {}, el("span", { class: "track half" }, bar)),
        el("td", { class: "called", dir: "auto" }, found.names[latent] || ""));
    });
    const heads = ["feature", "activation", "", "when ablated", "", ""].map((name) => el("th", { scope: "col" }, name));
    const body = el("tbody", {}, ...lines);
    table.replaceChildren(el("thead", {}, el("tr", {}, ...heads)), body);
    if (buttons.length) {
      roving(body, buttons, 1, { show: () => {}, lock: (at) => store.set({ feature: rows[at][0] }), unlock: () => {} });
      if (focused) (buttons.find((_, at) => rows[at][0] === chosen) || buttons[0]).focus();
    }
    const values = found.rows.map((row) => (row.find(([latent]) => latent === chosen) || [0, 0])[1]);
    where.textContent = chosen === null ? "No feature is active at this token." : `Where ${title(chosen)} is among the largest; full colour is ${number(largest)}.`;
    refill(strip, values.map((value, at) => {
      const item = el("button", { type: "button", class: "token" }, el("bdi", {}, run.reading.pieces[at]), el("small", {}, value ? number(value) : ""));
      fill(item, value ? amount((DEEPEST * Math.abs(value)) / largest) : null);
      current(item, "chosen", at === state.position);
      item.addEventListener("click", () => store.set({ position: at }));
      return item;
    }));
  };
}

/** Layers by positions through the tuned lens, and how far each layer is from the end. */
function drawTuned(stage, found, run, store) {
  const { pieces, lens } = run.reading;
  const cells = [];
  const lines = found.rows.map((row, at) => {
    const own = found.candidates[at].map((candidates, position) => {
      const [text, share] = candidates[0];
      const cell = el("td", { role: "gridcell" }, el("bdi", {}, text));
      fill(cell, AMOUNT(share));
      const plain = ((lens.candidates[at] || [])[position] || [[]])[0][0];
      cell.classList.toggle("differs", plain !== text);
      const listed = candidates.map(([one, value]) => `${isolate(one)} ${percent(value)}`).join(", ");
      cell.title = `${row}, after ${isolate(pieces[position])}@${position}: ${listed}${plain === text ? "" : `; the logit lens: ${isolate(plain)}`}`;
      cell.setAttribute("aria-label", cell.title);
      cells.push(cell);
      return cell;
    });
    return el("tr", {}, el("th", { scope: "row" }, row), ...own);
  });
  const heads = pieces.map((piece) => el("th", { scope: "col", title: piece }, el("bdi", {}, piece)));
  const table = el("table", { role: "grid", class: "grid lens", "aria-label": "tuned lens" },
    el("thead", {}, el("tr", {}, el("th", { class: "corner" }, axisNames("layer", "after")), ...heads)), el("tbody", {}, ...lines));
  const at = (row, position) => {
    const layer = Math.max(0, Math.min(row - 1, run.layers - 1));
    store.set({ row, position, layer });
  };
  roving(table, cells, pieces.length, { show: () => {}, lock: (place) => at(Math.floor(place / pieces.length), place % pieces.length), unlock: () => {} });
  let marked = null;
  const scroll = scrolling([table], () => marked);
  const scale = el("div", { class: "scale" }, "0", rampBar(AMOUNT), "100 %", " probability of the likeliest next token");
  const closeness = el("div", { class: "found" });
  stage.append(el("div", {}, scroll.node, scale), closeness);
  plot(closeness, found.curves, heard(closeness), (row) => at(row, store.state.position));
  return (state) => {
    if (marked) current(marked, "at", false);
    marked = cells[state.row * pieces.length + state.position];
    if (marked) current(marked, "at", true);
    scroll.reveal();
  };
}

/** The parts of a circuit and its edges; a part that is clicked is selected, as others are. */
function drawCircuit(stage, found, run, store) {
  const pick = (name) => {
    const [, layer, head] = name.match(/^L(\d+)H(\d+)$/) || name.match(/^MLP(\d+)$/) || [];
    if (layer !== undefined) store.set({ layer: Number(layer), ...(head === undefined ? {} : { head: Number(head) }) });
  };
  network(stage, found.network, null, heard(stage), pick);
  const parts = [...stage.querySelectorAll(".part")];
  return (state) => {
    const chosen = headName(state.layer, state.head);
    parts.forEach((part, at) => part.classList.toggle("here", found.network.names[at] === chosen));
  };
}

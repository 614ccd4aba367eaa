// Panels of the explorer that are computed when they are opened, and how each is drawn.
//
// parts of theirs: note, control (what it was held against), of (what was selected then), code; or
// missing: one line that says what is needed.
//   features: rows [pos] of [latent, activation, effect], names {latent: what it stands for}
//   tuned: rows, candidates (as of the lens), curves
//   steering: curves (what curves.js takes)
//   circuit: network (what network.js takes, without attention)
//   training: curves, names (of the checkpoints)

const OPENED = {
  features: {
    title: "Features",
    sentence: "What a dictionary finds at each token, at the end of the selected layer, and what each feature does to the logit.",
    keys: "Arrows move between features, Enter selects one; below is where else it is active.",
    draw: drawFeatures,
  },
  tuned: {
    title: "Tuned lens",
    sentence: "What each layer would say if its stream were translated into the language of the last one. The built-in model's lens is trained when it is first asked for, which takes some seconds.",
    keys: "Arrows move, Enter selects a cell: its position and its layer.",
    draw: drawTuned,
  },
  steering: {
    title: "Steering",
    sentence: "What pushing the stream along a direction at the selected layer does to the answer: from the second prompt to the first, or along a direction that was given.",
    keys: "Arrows read the lines at a place.",
    draw: (stage, { curves }) => plot(stage, curves, heard(stage)),
  },
  circuit: {
    title: "Circuit",
    sentence: "The edges between heads and MLPs that carry the difference of both prompts, and whether they do it alone.",
    keys: "Arrows move between parts, Enter selects one.",
    draw: drawCircuit,
  },
  training: {
    title: "Over training",
    sentence: "How likely what is expected after the selected token is, at every checkpoint.",
    keys: "Arrows read a checkpoint, Enter goes to it.",
    draw: (stage, { curves, names }, run) => plot(stage, curves, heard(stage), (at) => run.walk && run.walk(names[at])),
  },
};

/** A row of names to open, and below it the panels that are open. */
function openedPanels(run, store, save, emit) {
  const row = el("div", { class: "deeper", role: "group", "aria-label": "more panels" }, "Look deeper: ");
  const grid = el("div", { class: "panels" });
  const made = new Map();
  const buttons = Object.entries(OPENED).map(([name, { title }]) => {
    const button = el("button", { type: "button", "aria-expanded": "false" }, title);
    button.addEventListener("click", () => {
      const { open } = store.state;
      const opens = !open.includes(name);
      store.set({ open: opens ? [...open, name] : open.filter((other) => other !== name) });
      if (opens && !run.parts[name]) emit("ask", { what: name });
      if (opens) made.get(name).node.scrollIntoView({ block: "nearest" });
    });
    return [name, button];
  });
  row.append(el("span", { class: "switches" }, ...buttons.map(([, button]) => button)));
  store.on((state) => {
    for (const [name, button] of buttons) {
      const shown = state.open.includes(name);
      button.setAttribute("aria-expanded", String(shown));
      if (shown && !made.has(name)) {
        made.set(name, openedPanel(name, run, store, save, emit));
        grid.append(made.get(name).node);
      }
      if (!made.has(name)) continue;
      made.get(name).node.hidden = !shown;
      if (shown) made.get(name).draw(state);
    }
  });
  return el("div", {}, row, grid);
}

/** One of them: what it says, what that was held against, a button to ask, and a picture. */
function openedPanel(name, run, store, save, emit) {
  const { title, sentence, keys, draw } = OPENED[name];
  const { node, body, say } = card(title, sentence, { keys, save: save(name), wide: true });
  const control = el("p", { class: "note control" });
  const again = el("button", { type: "button", class: "mini" });
  const stage = el("div", { class: "found" });
  again.addEventListener("click", () => emit("ask", { what: name }));
  body.append(again, control, stage);
  let drawn = null;
  let follow = null;
  return {
    node,
    draw(state) {
      const found = run.parts[name];
      if (found !== drawn) {
        drawn = found;
        follow = null;
        stage.replaceChildren();
        const here = emit.live ? sentence : `${sentence} Not asked before this page was made: open the panel in a notebook, or explorer.ask("${name}").`;
        say(found ? found.missing || found.note : here);
        control.textContent = (found && found.control) || "";
        control.hidden = !control.textContent;
        if (found && !found.missing) follow = draw(stage, found, run, store, emit);
      }
      if (follow) follow(state);
      const moved = found && Object.entries(found.of || {}).filter(([what, value]) => state[what] !== value);
      again.hidden = !emit.live || Boolean(found && !found.missing && !moved.length);
      again.textContent = moved && moved.length ? `measure for ${moved.map(([what]) => SELECTED[what](state)).join(", ")}` : "measure";
    },
  };
}

const SELECTED = { position: ({ position }) => `token ${position}`, layer: ({ layer }) => `layer ${layer}` };

/** The numbers of these panels, one row each, as explorer.js saves them. */
function openedRows({ parts, reading }) {
  const ofLines = ({ curves }) => [["line", "x", "y", "low", "high"],
    ...curves.lines.flatMap(({ name, x, y, low, high }) => x.map((place, at) => [name, place, y[at], low[at], high[at]]))];
  const of = (name, made) => () => (parts[name] && !parts[name].missing ? made(parts[name]) : []);
  return {
    features: of("features", ({ rows }) => [["pos", "token", "latent", "activation", "effect"],
      ...rows.flatMap((row, pos) => row.map((one) => [pos, reading.pieces[pos], ...one]))]),
    tuned: of("tuned", ({ rows, candidates }) => [["row", "pos", "token", "candidate", "probability"],
      ...rows.flatMap((row, at) => candidates[at].flatMap((cell, pos) => cell.map((one) => [row, pos, reading.pieces[pos], ...one])))]),
    steering: of("steering", ofLines),
    circuit: of("circuit", ({ network }) => [["writer", "reader", "input", "value"],
      ...network.value.map((value, at) => [network.names[network.begin[at]], network.names[network.end[at]], network.note[at], value])]),
    training: of("training", ofLines),
  };
}

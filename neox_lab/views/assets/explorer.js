// The explorer: one run of a model, many panels, one selection.
//
// data: title, notes, model (in words), layers, heads, state, reading, parts, code
//   state: position, key (or null), row (of the lens), layer, head, measure, shown ("first",
//     "second" or "difference"), lines (whether a pattern is drawn as lines), open (names of panels),
//     feature (or null)
//   reading: prompt, pieces, attention (as in attention.js), about [pos], lens: rows and candidates
//     [row][pos] of [text, share]; shares: names, where [layer, head or null] or null, values [pos][part]
//   parts: what was asked for so far: compared (a reading, with same and change [row][pos]), effects,
//     attribution, patching, writing, switched, and those of explorer_opened.js
//   revisions (may be missing): names, chosen, readings ({name: reading} of those that were run)
//   code: Python that makes the same, with {position}, {layer}, {head} and {revision} in it; an answer may have code of its own
// A live host has emit(event, detail): "state", "ask", "save", "branch", "show", "revision"; and
// part(name, act), which tells what was asked for when it has come, another reading included.

async function mount(element, data, host) {
  const { body, say } = frame(element, data);
  const emit = (event, detail) => host && host.emit(event, detail);
  emit.live = Boolean(host);
  const run = await opened(data);
  const own = document.documentElement.dataset.neox === "page" && !host;
  const store = makeStore(within({ ...data.state, ...(own ? fromAddress() : {}) }, run), (state) => {
    if (own) history.replaceState(null, "", `#${encodeURIComponent(JSON.stringify(state))}`);
    emit("state", { state });
    say(`Token ${state.position}, ${run.reading.lens.rows[state.row]}, ${headWords(state.layer, state.head)}.`);
  });
  const save = (panel) => savers(panel, run, store, host);
  const button = (text, act, title) => {
    const node = el("button", { type: "button", class: "mini", ...(title ? { title } : {}) }, text);
    node.addEventListener("click", act);
    return node;
  };
  const ask = (text, what, title) => (host ? [button(text, () => emit("ask", { what }), title)] : []);
  const grid = el("div", { class: "explorer panels" });
  const views = switches("which prompt", () => run.choices(), "first", (shown) => store.set({ shown }));
  store.on((state) => views.draw(run.readable(state.shown)));
  const panels = [
    tokensPanel(run, store),
    candidatesPanel(run, store, save),
    headsPanel(run, store, save, [
      ...ask("switch off each", "ablation", "The logit lost when each head gives its mean instead"),
      ...ask("patch each", "heads", "What comes back when each head is taken from the other prompt"),
      ...ask("induction scores", "induction", "Measured on repeated random tokens"),
    ]),
    patternPanel(run, store, save),
    lensPanel(run, store, save),
    ...(run.reading.shares ? [partsPanel(run, store, save)] : []),
    wordsPanel(run, store, [
      ...ask("switch this head off", "off"),
      ...ask("take it from the second prompt", "swap"),
    ]),
  ];
  // A page without a kernel has no empty frames for what nobody asked.
  const there = (name) => host || data.parts[name];
  if (there("attribution")) panels.push(attributionPanel(run, store, save, ask("measure", "attribution")));
  if (there("patching"))
    panels.push(patchingPanel(run, store, save, [...ask("patch the stream", "resid_pre"), ...ask("attention", "attn_out"), ...ask("MLP", "mlp_out")]));
  if (there("writing")) panels.push(writingPanel(run, store, save, ask("write on", "writing"), emit));
  grid.append(...panels);
  const more = openedPanels(run, store, save, emit);
  const steps = data.revisions ? [slider(data.revisions, run, store, emit)] : [];
  const code = python(data, run, store);
  const [tokens, , heads, , lens] = panels;
  const first = firstSteps(emit.live, { tokens, lens, heads, deeper: more, python: code });
  const above = el("div", { class: "above" }, el("span", {}, data.model), ...steps, el("span", {}, first.again, views.group));
  body.append(above, first.node, grid, more, code);
  body.classList.add("explorer-body");
  const wanted = ["effects", ...ANSWERS, "compared", "reading"];
  if (host) for (const name of wanted) host.part(name, (part) => took(name, part));
  store.draw();
  jumps(body, panels);

  /** What was asked for has come; nothing, when it no longer belongs to what is shown. */
  async function took(name, part) {
    const there = part && Object.keys(part).length;
    if (name === "reading") {
      if (!there) return;
      run.reading = await run.open(part);
      if (run.moved) run.moved();
    } else if (there) {
      const fresh = Object.keys(part).filter((key) => !(key in (run.parts[name] || {})));
      if (name === "effects" && fresh.length) store.state.measure = fresh.at(-1); // what was asked for last
      run.parts[name] = part;
    } else delete run.parts[name];
    if (name === "compared") run.second = there ? await run.open(part) : null;
    store.draw();
  }
}

/** Checkpoints of one training: a kernel runs any, a page shows those that were run. */
function slider({ names, chosen, readings }, run, store, emit) {
  const input = el("input", { type: "range", min: 0, max: names.length - 1, step: 1, "aria-label": "revision" });
  const shown = el("output", {}, chosen);
  const parts = run.parts;
  const ofAll = parts.training ? { training: parts.training } : {};
  const second = run.second;
  input.value = names.indexOf(chosen);
  run.revision = chosen;
  input.addEventListener("input", async () => {
    const name = names[Number(input.value)];
    shown.textContent = name;
    if (emit.live) return;
    if (!readings[name]) return void (shown.textContent = `${name} (not kept here)`);
    run.revision = name;
    [run.parts, run.second] = name === chosen ? [parts, second] : [ofAll, null]; // answers are of one model
    run.reading = await run.open(readings[name]);
    store.draw();
  });
  run.walk = (name) => {
    if (!names.includes(name)) return;
    input.value = names.indexOf(name);
    for (const event of ["input", "change"]) input.dispatchEvent(new Event(event));
  };
  run.moved = () => (run.revision = names[Number(input.value)]);
  input.addEventListener("change", () => emit("revision", { name: names[Number(input.value)] }));
  return el("label", { class: "revision" }, "revision ", input, shown);
}

/** A reading with its patterns unpacked, and what both readings make possible. */
async function opened(data) {
  const open = async (reading) => {
    const attention = { ...reading.attention, pieces: reading.pieces };
    const panels = panelsOf(attention, await unpack(attention.weights));
    const known = new Map(panels.map((panel) => [`${panel.layer}.${panel.head}`, panel]));
    return { ...reading, attention, known };
  };
  const run = { parts: { ...data.parts }, layers: data.layers, reading: await open(data.reading), second: null };
  run.head = (layer, head, which = "first") => (which === "second" && run.second ? run.second : run.reading).known.get(`${layer}.${head}`);
  run.open = open;
  run.readable = (shown) => (run.second && run.second.same ? shown : "first");
  /** The run on show: the second where it was chosen, else the first. */
  run.shown = (state) => (run.readable(state.shown) === "second" ? run.second : run.reading);
  run.choices = () => {
    if (!run.second) return [];
    const why = run.second.same ? "" : `the prompts have ${run.reading.pieces.length} and ${run.second.pieces.length} tokens`;
    return [["first", "first"], ["second", "second", why], ["difference", "difference", why]];
  };
  if (run.parts.compared) run.second = await open(run.parts.compared);
  return run;
}

/** A state that fits the run: an address may say anything. */
function within(state, run) {
  const whole = (value, most, other) => (Number.isInteger(value) && value >= 0 && value <= most ? value : other);
  const last = run.reading.pieces.length - 1;
  const { heads } = run.reading.attention;
  return {
    position: whole(state.position, last, last),
    key: whole(state.key, last, null),
    row: whole(state.row, run.reading.lens.rows.length - 1, run.reading.lens.rows.length - 1),
    layer: whole(state.layer, run.layers - 1, run.layers - 1),
    head: heads.includes(state.head) ? state.head : heads[0],
    measure: String(state.measure || ""),
    shown: ["first", "second", "difference"].includes(state.shown) ? state.shown : "first",
    lines: state.lines === true,
    open: Object.keys(OPENED).filter((name) => Array.isArray(state.open) && state.open.includes(name)),
    feature: whole(state.feature, Infinity, null),
  };
}

function fromAddress() {
  try {
    const found = JSON.parse(decodeURIComponent(location.hash.slice(1)));
    return found && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
}

/** Digits jump to panels, unless somebody is typing. */
function jumps(body, panels) {
  body.parentNode.addEventListener("keydown", (event) => {
    const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
    const target = panels[Number(event.key) - 1];
    if (typing || !target || event.ctrlKey || event.metaKey || event.altKey) return;
    const stop = target.querySelector('[tabindex="0"], select, button:not(:disabled)');
    if (!stop) return;
    stop.focus();
    target.scrollIntoView({ block: "nearest" });
    event.preventDefault();
    event.stopPropagation();
  });
}

const ANSWERS = ["attribution", "patching", "switched", "writing", ...Object.keys(OPENED)]; // with code of their own

/** The calls that make what is shown, to take to a notebook. */
function python(data, run, store) {
  const text = el("pre", {});
  const copy = el("button", { type: "button", class: "mini" }, "copy");
  copy.addEventListener("click", () => navigator.clipboard.writeText(text.textContent).then(() => (copy.textContent = "copied")));
  store.on((state) => {
    const shown = { position: state.position, layer: state.layer, head: state.head, revision: JSON.stringify(run.revision) };
    const { effects, ...others } = run.parts; // each brings its calls, about what was selected then
    const asked = ANSWERS.map((name) => others[name] || {});
    const made = [...Object.values(effects || {}), ...asked].flatMap((answer) => answer.code || []);
    const code = data.code.replace(/\{(position|layer|head|revision)\}/g, (_, name) => shown[name]);
    text.textContent = [code, ...made].join("\n\n");
    copy.textContent = "copy";
  });
  return el("details", {}, el("summary", {}, "The same in Python"), copy, text);
}

/** Buttons that save a panel: pictures are drawn by Python, numbers are here. */
function savers(panel, run, store, host) {
  const forms = host ? ["png", "svg", "csv"] : ["csv"];
  return forms.map((form) => {
    const button = el("button", { type: "button", class: "mini", title: `Save as ${form.toUpperCase()}` }, form);
    button.addEventListener("click", () => {
      if (host) host.emit("save", { panel, form });
      else download(`${panel}.csv`, "text/csv", csv(panel, run, store.state));
    });
    return button;
  });
}

/** The numbers of a panel, one row each. */
function csv(panel, run, state) {
  const { reading, parts } = run;
  const { lens, pieces } = reading;
  const rows = {
    candidates: () => [["token", "probability"], ...lens.candidates[state.row][state.position]],
    lens: () => [["row", "pos", "token", "candidate", "probability"],
      ...lens.rows.flatMap((row, at) => pieces.flatMap((piece, pos) => lens.candidates[at][pos].map(([text, share]) => [row, pos, piece, text, share])))],
    heads: () => {
      const measures = headMeasures(run, state);
      const panels = [...reading.known.values()].filter((one) => one.head !== "mean");
      return [["layer", "head", ...measures.map((one) => one.name)], ...panels.map((one) => [one.layer, one.head, ...measures.map((measure) => measure.of(one, state))])];
    },
    pattern: () => {
      const one = run.head(state.layer, state.head);
      return [["query_pos", "query", "key_pos", "key", "weight"],
        ...pieces.flatMap((query, at) => pieces.map((key, of) => [at, query, of, key, one.weight(at, of)]).filter((row) => !reading.attention.causal || row[2] <= at))];
    },
    parts: () => [["part", "share"], ...reading.shares.names.map((name, part) => [name, reading.shares.values[state.position][part]])],
    attribution: () => [["pos", "token", "value"], ...(parts.attribution ? parts.attribution.values.map((value, at) => [at, pieces[at], value]) : [])],
    patching: () => [["layer", "pos", "value"], ...(parts.patching ? parts.patching.values.flatMap((line, layer) => line.map((value, pos) => [layer, pos, value])) : [])],
    ...openedRows(run),
    writing: () => [["token", "probability"], ...(parts.writing ? parts.writing.tokens.map(({ text, share }) => [text, share]) : [])],
  }[panel]();
  const cell = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

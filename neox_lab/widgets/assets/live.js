// The frame of every live widget: a form, buttons, a line of words, and the views' own pictures.
//
// Traits read: heading, verb, controls, phase, message, progress, unit, panels, slot, and one for each
// control. Traits written: those of the controls, and request: {id, action, ...arguments}.
// A panel is {key, asset, data, on, beside}; MOUNTS[asset](element, data, host) draws it. What a
// picture emits becomes a request if `on` says so: host.emit(event, detail) -> {action: on[event],
// ...detail}. A picture whose events nobody wants gets no host. host.part(name, act) calls act with
// the value of a trait, now and whenever it changes. The trait download, where there is one, is a
// file to save: {name, content (base64), id}.

export default { render };

MOUNTS.choices = (element, { title, names, chosen }, host) => {
  const group = make("div", { class: "choices", role: "group", "aria-label": title }, title);
  names.forEach((name, at) => {
    const button = make("button", { type: "button", "aria-pressed": String(at === chosen) }, name);
    button.addEventListener("click", () => host.emit("choose", { choice: at }));
    group.append(button);
  });
  element.replaceChildren(group);
};

const PATIENCE = 4000; // milliseconds
const SILENT =
  "No answer yet: the kernel is busy with a cell, or it is gone; then run the cell again.";
const GONE = "The kernel is gone. Run the cell again to bring this back to life.";

/** What can have the focus inside a picture, and which of it has: it stays when it is drawn anew. */
const inside = (node) => node.querySelector(".neox-live")?.shadowRoot || node;
const stops = (node) => [...inside(node).querySelectorAll("button, select, input, [tabindex]")];
function held(node) {
  const root = inside(node);
  return stops(node).indexOf(root.activeElement ?? root.getRootNode().activeElement);
}

/** Seconds in words, as in progress.py: 8 s, 3:05 min, 2:00 h. */
function duration(seconds) {
  const whole = Math.round(seconds);
  const two = (number) => String(Math.floor(number)).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}:${two(whole % 60)} min`;
  return `${Math.floor(whole / 3600)}:${two((whole % 3600) / 60)} h`;
}

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes))
    if (value !== undefined && value !== null) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function render({ model, el }) {
  const listening = [];
  const on = (name, act) => {
    model.on(name, act);
    listening.push([name, act]);
    act();
  };
  let count = 0;
  let waiting; // for any word of the kernel
  const ask = (action, detail = {}) => {
    model.set("request", { id: `${Date.now()}-${count++}`, action, ...detail });
    model.save_changes();
    clearTimeout(waiting);
    if (action !== "select") waiting = setTimeout(() => (words.textContent = SILENT), PATIENCE);
  };

  // The attribute keeps keys typed here from driving the notebook's cells.
  const outer = make("div", { class: "neox-widget", "data-lm-suppress-shortcuts": "true" });
  const kept = `[data-neox="${model.get("slot")}"] .neox-current { display: none; }`;
  el.append(make("style", {}, kept), outer); // what is kept below is shown here, while we live
  const section = make("section", { "aria-label": model.get("heading") });
  outer.attachShadow({ mode: "open" }).append(make("style", {}, LIVE_STYLE), section);

  const heading = make("h3", {}, model.get("heading"));
  const form = make("form", {});
  for (const control of model.get("controls")) form.append(field(model, control, on, ask));
  const run = make("button", { type: "submit", class: "run" }, model.get("verb"));
  const stop = make("button", { type: "button", class: "stop" }, "Stop");
  const pin = make("button", { type: "button", title: "Keep this result below" }, "Pin");
  stop.addEventListener("click", () => ask("stop"));
  pin.addEventListener("click", () => ask("pin"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    ask("run");
  });
  const bar = make("progress", { "aria-label": "progress" });
  const words = make("p", { class: "words", role: "status", "aria-live": "polite" });
  const pins = make("div", { class: "pins" });
  form.append(make("div", { class: "buttons" }, run, stop, pin, bar), words, pins);
  const pictures = make("div", { class: "pictures" });
  section.append(heading, form, pictures);

  let begun = { done: 0, time: Date.now() }; // when the present work was first heard of
  const counted = (done, all) => {
    const [first, last] = [done, all].map((count) => count.toLocaleString("en"));
    const unit = model.get("unit");
    return `${first} of ${last} ${unit}${unit.endsWith("ch") ? "es" : "s"}`;
  };
  const left = (done, all) => {
    const each = (Date.now() - begun.time) / 1000 / (done - begun.done);
    return done > begun.done && all > done ? ` · ${duration(each * (all - done))} left` : "";
  };

  // What tells of the kernel's end also tells of its being there; a widget is shown while it is.
  let gone = false;
  const ended = () => {
    gone = !gone;
    for (const button of form.querySelectorAll("button")) button.disabled = gone;
    state();
  };
  const state = () => {
    clearTimeout(waiting);
    const phase = gone ? "gone" : model.get("phase");
    const busy = phase === "waiting" || phase === "running";
    const [done, all] = model.get("progress");
    section.dataset.phase = phase;
    section.setAttribute("aria-busy", String(busy));
    stop.disabled = gone || !busy;
    bar.hidden = !busy;
    if (all) [bar.max, bar.value] = [all, done];
    else bar.removeAttribute("value");
    if (phase !== "running" || !all || done < begun.done) begun = { done, time: Date.now() };
    const going = all ? `${counted(done, all)}${left(done, all)}` : "Working …";
    const said = { waiting: "Waiting for other work …", running: going };
    words.textContent = gone ? GONE : model.get("message") || said[phase] || "";
  };
  for (const name of ["phase", "message", "progress"]) on(`change:${name}`, state);
  model.on("comm_live_update", ended);
  listening.push(["comm_live_update", ended]);
  on("change:pins", () => {
    const numbers = Array.from({ length: model.get("pins") || 0 }, (_, number) => number);
    const buttons = numbers.map((number) => {
      const button = make("button", { type: "button", title: `Remove pin ${number + 1}` }, `${number + 1} ×`);
      button.addEventListener("click", () => ask("unpin", { number }));
      return button;
    });
    pins.replaceChildren(...(buttons.length ? ["Pinned below:", ...buttons] : []));
  });

  const drawn = new Map();
  on("change:panels", () => {
    const panels = model.get("panels");
    const keys = new Set(panels.map((panel) => panel.key));
    for (const [key, entry] of drawn)
      if (!keys.has(key)) leave(entry), entry.node.remove(), drawn.delete(key);
    panels.forEach(draw);
  });

  /** No longer tell a picture what comes. */
  function leave(entry) {
    for (const [name, act] of entry.parts) model.off(name, act);
    entry.parts = [];
  }

  function draw({ key, asset, data, on: wanted, beside }, number) {
    const text = JSON.stringify([asset, data]);
    if (!drawn.has(key))
      drawn.set(key, { node: make("div", { "data-panel": key }), text: "", parts: [] });
    const entry = drawn.get(key);
    entry.node.className = beside ? "beside" : "";
    const there = pictures.children[number]; // a node that is moved loses the focus inside
    if (there !== entry.node) pictures.insertBefore(entry.node, there || null);
    if (entry.text === text) return;
    entry.text = text;
    const fresh = make("div");
    const failed = (error) => fresh.replaceChildren(`This cannot be drawn: ${error.message}`);
    const emit = (event, detail) => wanted[event] && ask(wanted[event], detail);
    leave(entry);
    const part = (name, act) => {
      const tell = () => act(model.get(name));
      model.on(`change:${name}`, tell);
      entry.parts.push([`change:${name}`, tell]);
      tell();
    };
    const host = Object.keys(wanted).length ? { emit, part } : undefined;
    const fresher = count > 0 && !entry.shown; // it came because somebody here asked
    const now = held(entry.node);
    if (now >= 0) entry.place = now; // else what an earlier drawing still has to give back
    const height = entry.node.offsetHeight; // what stands below does not jump while we draw
    entry.node.style.minHeight = `${height}px`;
    entry.node.replaceChildren(fresh);
    Promise.resolve()
      .then(() => MOUNTS[asset](fresh, data, host))
      .catch(failed)
      .finally(() => {
        entry.node.style.minHeight = "";
        entry.shown = true;
        if (entry.node.firstChild === fresh) giveBack(entry);
        if (fresher) entry.node.scrollIntoView({ block: "nearest" });
      });
  }

  /** Focus what stands where the focus was, or what comes before it, unless it has gone elsewhere. */
  function giveBack(entry) {
    const { place = -1 } = entry;
    entry.place = -1;
    const lost = !outer.shadowRoot.activeElement && [null, document.body].includes(document.activeElement);
    const able = stops(entry.node).slice(0, place + 1).filter((stop) => !stop.disabled);
    if (place >= 0 && lost) able.at(-1)?.focus({ preventScroll: true });
  }

  let saved = (model.get("download") || {}).id;
  on("change:download", () => {
    const { name, content, id } = model.get("download") || {};
    if (!name || id === saved) return;
    saved = id;
    make("a", { download: name, href: `data:application/octet-stream;base64,${content}` }).click();
  });

  return () => {
    for (const [name, act] of listening) model.off(name, act);
    for (const entry of drawn.values()) leave(entry);
    el.replaceChildren();
  };
}

/** What belongs to tokens and must be seen in a field, and the signs that stand for it. */
const SIGNS = [[" ", "·"], ["\n", "⏎"], ["\t", "⇥"]];

/** A control with its label; its value goes to the kernel when it is entered. */
function field(model, control, on, ask) {
  const { name, label, kind, min, max, step, options, runs } = { kind: control.control, ...control };
  let input;
  if (kind === "choice") input = make("select", {}, ...options.map((o) => make("option", {}, o)));
  else if (kind === "area" || kind === "text") input = make("textarea", { rows: kind === "area" ? 4 : 1 });
  else input = make("input", { type: { slider: "range", number: "number" }[kind] || "text" });
  if (kind === "slider" || kind === "number") {
    const limits = { min, max, step: step || "any" };
    for (const [limit, value] of Object.entries(limits))
      if (value !== undefined) input.setAttribute(limit, value);
  }
  input.name = name;
  input.setAttribute("aria-label", label); // without a select's options, which its label contains
  input.spellcheck = false;
  input.dir = "auto";
  const signed = (text, from, to) => SIGNS.reduce((now, pair) => now.replaceAll(pair[from], pair[to]), text);
  const [read, write] =
    kind === "token" ? [(text) => signed(text, 1, 0), (text) => signed(text, 0, 1)] : [(text) => text, String];
  const numeric = kind === "slider" || kind === "number";
  const shown = make("output", {});
  const say = () => kind === "slider" && (shown.textContent = Number(input.value).toFixed(2));
  let given; // as the field has it, which may lack what no field can hold
  const enter = () => {
    if (input.value !== given) model.set(name, numeric ? Number(input.value) : read(input.value));
    if (runs) ask("run");
    else model.save_changes();
  };
  input.addEventListener("input", say);
  input.addEventListener("change", enter);
  input.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const newLine = kind === "area" ? !event.ctrlKey && !event.metaKey : event.shiftKey;
    if (event.key !== "Enter" || newLine) return;
    event.preventDefault();
    enter();
    if (!runs) ask("run");
  });
  on(`change:${name}`, () => {
    const value = write(model.get(name));
    if (input.value !== value) input.value = value;
    given = input.value;
    say();
  });
  return make("label", { class: kind }, make("span", {}, label), input, ...(kind === "slider" ? [shown] : []));
}

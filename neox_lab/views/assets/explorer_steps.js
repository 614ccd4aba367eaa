// Five small steps for whoever sees the explorer for the first time. They stand above the panels,
// never on them, and the browser remembers that they were closed.

const SEEN = "neox_lab explorer steps";
let step = 0; // stays when the panels are drawn anew
let walked = false; // whether somebody went on; until then nothing is outlined

const STEPS = (live) => [
  ["The prompt", "These are the tokens that the model read. Click one: every panel then speaks about what comes after it.", "tokens"],
  ["What comes next", "Its guesses after that token. In the logit lens a row is a layer: a click shows what the model would say if it stopped there.", "lens"],
  ["Heads", "A square is a head. Click one to see where it looks; the menu above them colours all of them by another measure.", "heads"],
  live
    ? ["Ask further", "Buttons in the panels run the model again, with a head switched off or patched. “Look deeper” opens features, steering, circuits and more; each is computed when you open it.", "deeper"]
    : ["Look deeper", "These open what else was asked before this page was made. In a notebook the panels have buttons that run the model again.", "deeper"],
  ["Take it with you", "A panel saves itself, “The same in Python” has the calls behind what you see, and digits jump from panel to panel.", "python"],
];

/** The steps, and a button that shows them again; `targets` are the panels they speak about. */
function firstSteps(live, targets) {
  const steps = STEPS(live);
  const count = el("b", {});
  const text = el("p", { "aria-live": "polite" });
  const press = (words, act) => {
    const button = el("button", { type: "button", class: "mini" }, words);
    button.addEventListener("click", act);
    return button;
  };
  const back = press("back", () => go(step - 1));
  const next = press("next", () => (step === steps.length - 1 ? close() : go(step + 1)));
  const node = el("div", { class: "steps", role: "region", "aria-label": "first steps" });
  node.append(el("div", {}, count, text), el("span", {}, back, next, press("close", close)));
  const again = press("first steps", () => {
    node.hidden = false;
    walked = true;
    go(0);
    next.focus();
  });
  node.addEventListener("keydown", (event) => {
    if (event.key === "Escape") close();
    else if (event.key === "ArrowRight" && step < steps.length - 1) go(step + 1);
    else if (event.key === "ArrowLeft" && step) go(step - 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const elsewhere = window.neoxSteps && window.neoxSteps.isConnected;
  node.hidden = seen() || elsewhere;
  if (!node.hidden) window.neoxSteps = node;
  draw();
  return { node, again };

  function go(to) {
    walked = true;
    step = Math.max(0, to);
    draw();
    targets[steps[step][2]].scrollIntoView({ block: "nearest" });
  }

  function close() {
    const focused = node.contains(node.getRootNode().activeElement);
    node.hidden = true;
    [step, walked] = [0, false];
    draw();
    remember();
    if (focused) again.focus();
  }

  function draw() {
    const [name, said, target] = steps[step];
    count.textContent = `${step + 1} of ${steps.length}: ${name}`;
    text.textContent = said;
    back.disabled = !step;
    node.classList.toggle("walked", walked); // then it stays in sight
    next.textContent = step === steps.length - 1 ? "done" : "next";
    for (const [which, panel] of Object.entries(targets))
      panel.classList.toggle("told", walked && !node.hidden && which === target);
  }
}

/** Whether they were closed here before; where nothing can be stored, until the page is left. */
function seen() {
  try {
    return window.neoxSeen || localStorage.getItem(SEEN) === "closed";
  } catch {
    return Boolean(window.neoxSeen);
  }
}

function remember() {
  window.neoxSeen = true;
  try {
    localStorage.setItem(SEEN, "closed");
  } catch {
    // a frame without storage
  }
}

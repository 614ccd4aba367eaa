// Tables of coloured cells, one for each place of a slider, on one scale.
//
// data: title, notes, axis (what the slider runs over), names (of its places), grid: what grid.js
//   gets without title, notes, text and level; texts and levels: [place][row][column] of each.

function mount(element, data) {
  const { body, say } = frame(element, data);
  const last = data.names.length - 1;
  const input = el("input", { type: "range", min: 0, max: last, value: last, step: 1 });
  input.setAttribute("aria-label", data.axis);
  const name = el("output", {}, "");
  const control = el("label", { class: "slider" }, `${data.axis} `, input, " ", name);
  body.parentNode.insertBefore(control, body);
  body.parentNode.insertBefore(legend(data.grid), body);
  const show = () => {
    const at = Number(input.value);
    name.textContent = data.names[at];
    input.setAttribute("aria-valuetext", data.names[at]);
    const here = { ...data.grid, title: `${data.title}, ${data.axis} ${data.names[at]}` };
    body.replaceChildren();
    cells(body, say, { ...here, text: data.texts[at], level: data.levels[at] });
    say(`${data.axis} ${data.names[at]}`);
  };
  input.addEventListener("input", show);
  input.addEventListener("keydown", (event) => event.stopPropagation());
  show();
}

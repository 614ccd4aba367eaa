// Lines over one axis; pointing at a place prints every line's value there.
//
// data: title, notes, x_label, y_label, x_names (names of the places 0, 1, …; may be null), lines:
//   name, x, y, low, high (null where there is none), faint, colour, dash, panel, end (its name in the panel); levels: {name:
//   value}, in the first panel; panels: what runs upwards in each, from top to bottom; ranges: the
//   lowest and highest value of each panel's axis.

function mount(element, data) {
  const { body, say } = frame(element, data);
  plot(body, data, say);
}

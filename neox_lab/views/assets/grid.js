// A table of coloured cells: patching results, a lens, a confusion matrix.
//
// data: title, notes, rows, columns (labels), row_axis, column_axis, value_name, first (position of the first column, may be missing), scale ("viridis", "diverging" or
//   "teals"), low and high (printed at its ends), legend (what it shows, value_name if missing), and
//   for each [row][column]: text, level (0 to 255, null for not measured), under (small text, may be
//   missing), bars (rows of [name, share, value], may be missing), lines (texts, may be missing),
//   marked (whether its corner is marked, may be missing; mark says what that means).
// host.emit("cell", {row, column}) tells a widget which cell was clicked.

function mount(element, data, host) {
  const { body, say } = frame(element, data);
  cells(body, say, data, host);
  body.parentNode.insertBefore(legend(data), body);
}

// A list of pages that can be searched.
//
// data: title, notes, columns (headings), unit (what a row is, in the plural), rows: the page's file
//   and a text for each column.

const SHOWN = 200;

function mount(element, data) {
  const { body, say } = frame(element, data);
  const field = el("input", {
    type: "search", placeholder: "Search", "aria-label": "Search", autocomplete: "off", class: "search",
  });
  const head = el("tr", {}, ...data.columns.map((name) => el("th", {}, name)));
  const list = el("tbody");
  const table = el("table", { class: "index" }, el("thead", {}, head), list);
  const texts = data.rows.map(([, ...cells]) => cells.join("\n").toLowerCase());
  const draw = () => {
    const asked = field.value.trim().toLowerCase();
    const words = asked.split(/\s+/).filter(Boolean);
    const found = data.rows.filter((_, at) => words.every((word) => texts[at].includes(word)));
    const named = ([, name]) => name.toLowerCase() === asked;
    found.sort((a, b) => named(b) - named(a)); // "feature 17" comes before what has a 17 elsewhere
    list.replaceChildren(...found.slice(0, SHOWN).map(line));
    const cut = found.length > SHOWN ? `, the first ${SHOWN} shown` : "";
    say(`${found.length} of ${data.rows.length} ${data.unit}${cut}.`);
  };
  field.addEventListener("input", draw);
  body.append(field, el("div", { class: "scroll" }, table));
  draw();
}

/** One row; its first cell leads to its page. */
function line([page, name, ...cells]) {
  const link = el("td", {}, el("a", { href: page }, name));
  return el("tr", {}, link, ...cells.map((text) => el("td", {}, el("bdi", {}, text))));
}

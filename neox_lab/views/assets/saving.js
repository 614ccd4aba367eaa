// Saving what is on the page: a text as a file, and a drawing, with its colours, as SVG or PNG.

function download(name, kind, content) {
  const link = el("a", { download: name, href: URL.createObjectURL(new Blob([content], { type: kind })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const STYLED = ["fill", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "text-anchor",
  "opacity", "display", "font-size", "font-family"];
const RIM = 8; // around it
const SHARPER = 2; // dots of a PNG for each of the page

/** Buttons that save a drawing as it stands; `name` is the file's. */
function drawingSavers(picture, name) {
  const forms = {
    SVG: () => download(`${name}.svg`, "image/svg+xml", standing(picture)),
    PNG: () => savePng(picture, name),
  };
  return Object.entries(forms).map(([form, save]) => {
    const button = el("button", { type: "button", title: `Save the drawing as ${form}` }, form);
    button.addEventListener("click", save);
    return button;
  });
}

/** The text of a drawing that needs no style sheet, on the colour that it stands on. */
function standing(picture) {
  const copy = picture.cloneNode(true);
  const [nodes, copies] = [picture, copy].map((root) => [root, ...root.querySelectorAll("*")]);
  nodes.forEach((node, at) => {
    const style = getComputedStyle(node);
    const kept = STYLED.map((each) => `${each}:${style.getPropertyValue(each)}`);
    copies[at].setAttribute("style", kept.join(";"));
  });
  const box = picture.viewBox.baseVal;
  const [x, y] = [box.x - RIM, box.y - RIM];
  const [width, height] = [box.width + 2 * RIM, box.height + 2 * RIM];
  const place = { viewBox: `${x} ${y} ${width} ${height}`, width, height };
  for (const [name, value] of Object.entries(place)) copy.setAttribute(name, value);
  copy.prepend(svg("rect", { x, y, width, height, fill: css(ground) }));
  return new XMLSerializer().serializeToString(copy);
}

function savePng(picture, name) {
  const drawn = new Image();
  drawn.addEventListener("load", () => {
    const canvas = el("canvas", { width: drawn.width * SHARPER, height: drawn.height * SHARPER });
    canvas.getContext("2d").drawImage(drawn, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => download(`${name}.png`, "image/png", blob));
  });
  drawn.src = `data:image/svg+xml,${encodeURIComponent(standing(picture))}`; // what pages may show
}

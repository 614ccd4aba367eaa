// Bring the view this script stands in to life, once; the picture makes room, the tables fold.
// Front ends that move scripts elsewhere get all views of this kind that still wait.

const script = document.currentScript;
const own = script && script.closest(".neox-view");
for (const view of own ? [own] : document.querySelectorAll(`.neox-view[data-kind="${KIND}"]`)) {
  if (view.neoxMounted) continue;
  view.neoxMounted = true;
  const data = JSON.parse(view.querySelector('script[type="application/json"]').textContent);
  const stage = el("div");
  view.prepend(stage);
  view.querySelector(".neox-asleep")?.remove();
  Promise.resolve(mount(stage, data)).then(
    () => {
      view.querySelector(".neox-picture").style.display = "none";
      view.querySelector(".neox-tables")?.removeAttribute("open");
    },
    (error) => {
      stage.remove(); // the picture is still there
      throw error;
    },
  );
}

// Above what a widget left behind JupyterLab says in red that it cannot draw the widget: it cannot
// without a kernel, and what is kept says how to bring it back.
const left = own && own.closest(".neox-current");
const above = left && left.closest(".jp-OutputArea-child")?.previousElementSibling;
const quiet = () => {
  if (above.textContent.includes("Error displaying widget")) above.style.display = "none";
};
if (above) for (const wait of [0, 500, 2000, 5000]) setTimeout(quiet, wait);

// Bring the view this script stands in to life, once; the picture makes room, the tables stay.
// Front ends that move scripts elsewhere get all views of this kind that still wait.

const script = document.currentScript;
const own = script && script.closest(".neox-view");
for (const view of own ? [own] : document.querySelectorAll(`.neox-view[data-kind="${KIND}"]`)) {
  if (view.neoxMounted) continue;
  view.neoxMounted = true;
  const data = JSON.parse(view.querySelector('script[type="application/json"]').textContent);
  const stage = el("div");
  view.prepend(stage);
  Promise.resolve(mount(stage, data)).then(
    () => (view.querySelector(".neox-picture").style.display = "none"),
    (error) => {
      stage.remove(); // the picture is still there
      throw error;
    },
  );
}

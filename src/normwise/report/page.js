"use strict";
(() => {
  const { dark, panels } = JSON.parse(document.getElementById("figures").textContent);
  const night = window.matchMedia("(prefers-color-scheme: dark)");
  const options = { displayModeBar: false, responsive: true };

  // A figure is made in light colours; on a dark page each is replaced where it is the whole value.
  function themed(figure, asDark) {
    return JSON.parse(JSON.stringify(figure), (key, value) => (asDark && dark[value]) || value);
  }

  function draw(place, { asDark = night.matches, width } = {}) {
    const figure = themed(panels[place.dataset.figure][place.dataset.panel], asDark);
    if (width) Object.assign(figure.layout, { width });
    else figure.layout.autosize = true;
    if (!place.dataset.drawn) place.replaceChildren();
    place.dataset.drawn = "yes";
    Plotly.react(place, figure.data, figure.layout, options);
  }

  const places = [...document.querySelectorAll(".plot")];
  const folded = (place) => place.closest("details:not([open])");
  const drawAll = (how) => places.filter((place) => !folded(place)).forEach((place) => draw(place, how));

  drawAll();
  night.addEventListener("change", () => drawAll());
  for (const fold of document.querySelectorAll("details")) {
    fold.addEventListener("toggle", () => {
      if (fold.open) fold.querySelectorAll(".plot").forEach((place) => draw(place));
    });
  }

  // Paper shows everything, in light colours, at a width that two panels share.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((fold) => (fold.open = true));
    for (const place of places) {
      const alone = place.closest(".panels").children.length === 1;
      draw(place, { asDark: false, width: alone ? 640 : 320 });
    }
  });
  window.addEventListener("afterprint", () => {
    opened.forEach((fold) => (fold.open = false));
    drawAll();
  });

  function select(code) {
    const range = document.createRange();
    range.selectNodeContents(code);
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  async function copy(code) {
    select(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      return "Copied.";
    } catch {
      return "Selected; press Ctrl+C to copy.";
    }
  }

  for (const button of document.querySelectorAll("button[data-copy]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const said = await copy(document.getElementById(button.dataset.copy));
      document.getElementById("status").textContent = said;
      const label = button.firstChild;
      label.textContent = said.startsWith("Copied") ? "Copied" : "Selected";
      setTimeout(() => (label.textContent = "Copy"), 2000);
    });
  }
})();

// Draws the figures, and draws them again in the other colours when the theme changes.
(function () {
  "use strict";
  const figures = JSON.parse(document.getElementById("figures-json").textContent);
  const palette = JSON.parse(document.getElementById("palette-json").textContent);
  const root = document.documentElement;
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtonsToRemove: ["lasso2d", "select2d"] };

  function kept() {
    try { return localStorage.getItem("alignscope-theme"); } catch (error) { return null; }
  }

  function themed(value) {
    if (root.dataset.theme !== "dark") return value;
    if (typeof value === "string") return palette[value] || value;
    if (Array.isArray(value)) return value.map(themed);
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, themed(part)]));
  }

  function draw(place) {
    const figure = figures[place.id];
    const size = { height: figure.layout.height, autosize: true };
    Plotly.react(place, themed(figure.data), Object.assign(themed(figure.layout), size), config);
    place.dataset.drawn = root.dataset.theme;
  }

  const places = Array.from(document.querySelectorAll(".plot"));
  places.forEach((place) => { place.style.minHeight = figures[place.id].layout.height + "px"; });

  function show(theme) {
    root.dataset.theme = theme;
    places.filter((place) => place.dataset.drawn).forEach(draw);
  }

  show(kept() || (system.matches ? "dark" : "light"));
  system.addEventListener("change", (event) => { if (!kept()) show(event.matches ? "dark" : "light"); });
  document.getElementById("theme").addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("alignscope-theme", theme); } catch (error) { /* not kept then */ }
    show(theme);
  });

  // one figure at a time, from the top, so that the page can be read and scrolled meanwhile
  function drawNext() {
    const place = places.find((candidate) => !candidate.dataset.drawn);
    if (!place) return;
    draw(place);
    setTimeout(drawNext, 0);
  }
  drawNext();
  window.addEventListener("beforeprint", () => places.filter((place) => !place.dataset.drawn).forEach(draw));
})();

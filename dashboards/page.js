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

// Tables of pairs: sort by a header, filter, turn pages. Text from files enters the page by textContent alone.
(function () {
  "use strict";
  const tables = JSON.parse(document.getElementById("browsed-json").textContent);
  const PER_PAGE = 25;
  const MINUS = "\u2212";
  const OPERATORS = {
    "<=": (a, b) => a <= b, ">=": (a, b) => a >= b, "<": (a, b) => a < b, ">": (a, b) => a > b, "=": (a, b) => a === b,
  };

  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function shown(value) {
    if (value === null) return "\u2013";
    if (typeof value === "string") return value;
    if (!Number.isFinite(value)) return value > 0 ? "\u221e" : MINUS + "\u221e";
    const size = Math.abs(value);
    const digits = size >= 1e4 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 };
    const plain = Number.isInteger(value) || (size >= 1e-4 && size < 1e5);
    return (plain ? value.toLocaleString("en-US", Number.isInteger(value) ? {} : digits) : value.toExponential(2)).replaceAll("-", MINUS);
  }

  // "loss>0.7" -> a test of a row; null where a number is missing after the operator; any other word: part of a text
  function condition(term, columns) {
    for (const column of columns) {
      const found = term.startsWith(column.name) && /^(<=|>=|<|>|=)(.*)$/.exec(term.slice(column.name.length));
      if (!found) continue;
      const [, operator, right] = found;
      if (!column.numeric) {
        return operator === "=" && right ? (i) => String(column.values[i]).toLowerCase() === right.toLowerCase() : null;
      }
      const limit = Number(right.replace(MINUS, "-").replaceAll(",", "").replace("\u221e", "Infinity"));
      if (right === "" || Number.isNaN(limit)) return null;
      return (i) => column.values[i] !== null && OPERATORS[operator](column.values[i], limit);
    }
    const part = term.toLowerCase();
    const texts = columns.filter((column) => !column.numeric);
    return (i) => texts.some((column) => column.values[i] !== null && column.values[i].toLowerCase().includes(part));
  }

  function compared(a, b, numeric) {
    return numeric ? (a > b) - (a < b) : a.localeCompare(b, "en", { numeric: true });
  }

  // rows without a value come last in both directions
  function sorted(rows, column, direction) {
    const sign = direction === "descending" ? -1 : 1;
    const known = rows.filter((i) => column.values[i] !== null);
    known.sort((i, j) => sign * compared(column.values[i], column.values[j], column.numeric));
    return known.concat(rows.filter((i) => column.values[i] === null));
  }

  function browse(place) {
    const columns = tables[place.id].columns;
    columns.filter((column) => column.numeric).forEach((column) => {
      column.values = column.values.map((value) => (value === null ? null : Number(value)));
    });
    const all = columns[0].values.map((_, i) => i);
    const state = { rows: all, page: 0, sort: null, direction: "none" };

    const filter = element("input", {
      type: "search", id: place.id + "-filter", autocomplete: "off", spellcheck: false,
      placeholder: "part of an id or class, column<number, column>number",
    });
    const status = element("span", { className: "status" });
    status.setAttribute("role", "status");
    const problem = element("span", { className: "problem", id: place.id + "-problem" });
    filter.setAttribute("aria-describedby", problem.id);
    const back = element("button", { type: "button", textContent: "previous" });
    const on = element("button", { type: "button", textContent: "next" });
    const body = element("tbody", {});
    const heads = columns.map((column, k) => {
      const button = element("button", { type: "button", textContent: column.name });
      button.addEventListener("click", () => turn(k));
      return element("th", { scope: "col", className: column.numeric ? "n" : "" }, button);
    });

    function turn(k) {
      const next = { none: "ascending", ascending: "descending", descending: "none" };
      state.direction = next[state.sort === k ? state.direction : "none"];
      state.sort = k;
      show(0);
    }

    function show(page) {
      const terms = filter.value.split(/\s+/).filter(Boolean);
      const conditions = terms.map((term) => condition(term, columns));
      const unread = terms.filter((_, k) => conditions[k] === null);
      const tests = conditions.filter(Boolean);
      let rows = all.filter((i) => tests.every((test) => test(i)));
      if (state.direction !== "none") rows = sorted(rows, columns[state.sort], state.direction);
      const pages = Math.max(1, Math.ceil(rows.length / PER_PAGE));
      state.page = Math.min(Math.max(page, 0), pages - 1);
      const visible = rows.slice(state.page * PER_PAGE, (state.page + 1) * PER_PAGE);
      body.replaceChildren(...visible.map((i) => element("tr", {}, ...columns.map((column) =>
        element("td", { className: column.numeric ? "n" : "", textContent: shown(column.values[i]) })))));
      heads.forEach((head, k) => head.setAttribute("aria-sort", k === state.sort ? state.direction : "none"));
      status.textContent = `shown ${shown(rows.length)} of ${shown(all.length)}, page ${shown(state.page + 1)} of ${shown(pages)}`;
      problem.textContent = unread.length ? `not understood: ${unread.join(" ")}` : "";
      filter.setAttribute("aria-invalid", String(unread.length > 0));
      back.disabled = state.page === 0;
      on.disabled = state.page === pages - 1;
    }

    filter.addEventListener("input", () => show(0));
    back.addEventListener("click", () => show(state.page - 1));
    on.addEventListener("click", () => show(state.page + 1));
    const label = element("label", { htmlFor: filter.id, textContent: "Filter" });
    const table = element("table", {}, element("thead", {}, element("tr", {}, ...heads)), body);
    table.setAttribute("aria-label", place.dataset.name);
    const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", place.dataset.name);
    place.replaceChildren(
      element("div", { className: "controls" }, label, filter, problem, element("span", { className: "pages" }, status, back, on)),
      scroll,
    );
    show(0);
  }

  document.querySelectorAll(".browser").forEach(browse);
})();

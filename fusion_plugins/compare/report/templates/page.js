"use strict";
// Theme: follows the system until the button is used; the choice is kept if possible.
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const stored = (value) => {
    try {
      if (value === undefined) return localStorage.getItem("compare-theme");
      localStorage.setItem("compare-theme", value);
    } catch { /* files opened from disk may have no storage */ }
    return null;
  };
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  const saved = stored();
  if (saved === "dark" || saved === "light") root.dataset.theme = saved;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored(root.dataset.theme);
    label();
  });
  system.addEventListener("change", label);
  let shown; // paper is white: print in the light theme, and all sections
  let folded = [];
  window.addEventListener("beforeprint", () => {
    shown = root.dataset.theme;
    root.dataset.theme = "light";
    folded = [...document.querySelectorAll("details.section:not([open])")];
    for (const section of folded) section.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const section of folded) section.open = false;
    if (shown) root.dataset.theme = shown;
    else delete root.dataset.theme;
  });
  label();
})();

// Sorting: what has no value stays last in both directions.
for (const table of document.querySelectorAll("table.data")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const first = button.dataset.first || "ascending";
      const other = first === "ascending" ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((cell) => cell.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.sort;
      const compare = (a, b) => {
        const [left, right] = [key(a), key(b)];
        if (left === "" || right === "") return (left === "") - (right === "");
        if (column === 0) return sign * left.localeCompare(right);
        return sign * (Number(left) - Number(right));
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}

// A link opens what it leads to.
const openTarget = () => {
  let node = location.hash && document.getElementById(location.hash.slice(1));
  for (const target = node; node; node = node.parentElement) {
    if (node instanceof HTMLDetailsElement) node.open = true;
    if (node === document.body) target.scrollIntoView();
  }
};
window.addEventListener("hashchange", openTarget);
openTarget();
for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", () => setTimeout(openTarget)); // also if it is the hash already
}

// Colours and differences of the tables: the best and the worst merged model of a column
// are the ends of its scale; differences share one scale unless the metrics are unlike.
const minus = (text) => text.replace("-", "−");
const paint = (base) => {
  for (const table of document.querySelectorAll("table.heat")) {
    const heads = [...table.tHead.rows[0].cells];
    const rows = [...table.tBodies[0].rows];
    const from = rows.find((row) => row.dataset.row === base);
    const value = (row, column) => {
      const text = row.cells[column].dataset.sort;
      return text === "" ? NaN : Number(text) - (from ? Number(from.cells[column].dataset.sort || NaN) : 0);
    };
    const merged = rows.filter((row) => !row.classList.contains("is-reference"));
    const columns = [...heads.keys()].slice(1);
    const finite = (column) => merged.map((row) => value(row, column)).filter(Number.isFinite);
    const extent = (shown) => Math.max(...shown.flatMap(finite).map(Math.abs));
    const widest = extent(columns);
    table.classList.toggle("differences", Boolean(from));
    for (const column of columns) {
      const { best, factor } = heads[column].dataset;
      const largest = table.classList.contains("unlike") ? extent([column]) : widest;
      const [low, high] = [Math.min(...finite(column)), Math.max(...finite(column))];
      for (const row of rows) {
        const cell = row.cells[column];
        const mean = cell.querySelector(".mean");
        mean.dataset.text ??= mean.textContent;
        const number = value(row, column);
        const shown = factor === "100" ? (number * 100).toFixed(1) : number.toPrecision(2);
        mean.textContent = from && Number.isFinite(number) ? minus((number > 0 ? "+" : "") + shown) : mean.dataset.text;
        const better = best === "min" ? -number : number;
        let share = from ? Math.abs(number) / largest : (best === "min" ? high - number : number - low) / (high - low);
        if (!merged.includes(row) || !best || !Number.isFinite(share)) share = 0;
        cell.classList.toggle("worse", Boolean(from) && better < 0);
        cell.style.setProperty("--heat", `${Math.round(45 * share)}%`);
      }
    }
  }
};

// Filters: parts of names with commas between them; a minus leaves out what it matches.
for (const form of document.querySelectorAll("form.filters")) {
  const words = (kind) => form.querySelector(`[data-filter="${kind}"]`).value
    .toLowerCase().split(",").map((word) => word.trim()).filter((word) => word && word !== "-");
  const matcher = (kind) => {
    const wanted = words(kind).filter((word) => word[0] !== "-");
    const unwanted = words(kind).filter((word) => word[0] === "-").map((word) => word.slice(1));
    return (name) => (!wanted.length || wanted.some((word) => name.includes(word)))
      && !unwanted.some((word) => name.includes(word));
  };
  const update = () => {
    const [method, task] = [matcher("methods"), matcher("tasks")];
    const rows = [...document.querySelectorAll("#results-table tbody tr")];
    const hidden = rows.filter((row) => !method(`${row.cells[0].dataset.sort} ${row.cells[0].textContent.toLowerCase()}`));
    for (const row of rows) {
      for (const part of document.getElementsByClassName(`m${row.dataset.row}`)) {
        part.classList.toggle("off", hidden.includes(row));
      }
    }
    const heads = [...document.querySelectorAll("th[data-task]")];
    for (const head of heads) {
      const off = !task(head.dataset.task.toLowerCase());
      for (const row of head.closest("table").rows) row.cells[head.cellIndex].classList.toggle("off", off);
    }
    const tasks = heads.filter((head) => head.closest("#results-table"));
    const left = tasks.filter((head) => !head.classList.contains("off"));
    form.querySelector("output").textContent = hidden.length || left.length < tasks.length
      ? `${rows.length - hidden.length} of ${rows.length} methods, ${left.length} of ${tasks.length} tasks` : "";
    paint(form.querySelector("select").value);
    hint();
  };
  form.hidden = false;
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("load", update); // browsers restore fields when a page is reloaded
}

// Boxes that hold more than they show say so at their edge.
const hint = () => {
  for (const box of document.querySelectorAll(".scroll")) {
    box.classList.toggle("more", box.scrollWidth - box.clientWidth - box.scrollLeft > 4);
  }
};
for (const box of document.querySelectorAll(".scroll")) box.addEventListener("scroll", hint);
document.addEventListener("toggle", hint, true);
window.addEventListener("resize", hint);

// Figures as SVG files, with the colours of paper.
for (const button of document.querySelectorAll("[data-save]")) {
  button.parentElement.hidden = false;
  button.addEventListener("click", () => {
    const figure = button.closest("figure");
    const svg = figure.querySelector("svg").cloneNode(true);
    for (const part of svg.querySelectorAll(".off")) part.remove();
    const { width, height } = svg.viewBox.baseVal;
    svg.setAttribute("width", `${width}pt`);
    svg.setAttribute("height", `${height}pt`);
    const text = new XMLSerializer().serializeToString(svg).replace(/var\(--\w+, ?(#\w+)\)/g, "$1");
    const link = document.createElement("a");
    link.download = `${figure.dataset.figure}.svg`;
    link.href = `data:image/svg+xml,${encodeURIComponent(text)}`;
    link.click();
  });
}

// Coefficients: single values under the pointer or the arrow keys.
for (const figure of document.querySelectorAll('[data-figure="coefficients"]')) {
  const methods = JSON.parse(figure.querySelector("script").textContent);
  const output = figure.querySelector("output");
  output.hidden = false;
  for (const [group, { method, tasks, keys, values }] of Object.entries(methods)) {
    const picture = figure.querySelector(`.${CSS.escape(group)} image`);
    let [row, column] = [0, 0];
    const show = () => {
      row = Math.min(Math.max(row, 0), tasks.length - 1);
      column = Math.min(Math.max(column, 0), keys.length - 1);
      output.textContent = `${method}: ${tasks[row]}, ${keys[column]}: ${values[row][column] / 1000}`;
    };
    picture.setAttribute("tabindex", "0");
    picture.setAttribute("aria-label", `Coefficients of ${method}`);
    picture.addEventListener("pointermove", (event) => {
      const box = picture.getBoundingClientRect();
      row = Math.floor((event.clientY - box.top) / box.height * tasks.length);
      column = Math.floor((event.clientX - box.left) / box.width * keys.length);
      show();
    });
    picture.addEventListener("keydown", (event) => {
      const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!move) return;
      event.preventDefault();
      [row, column] = [row + move[0], column + move[1]];
      show();
    });
  }
}

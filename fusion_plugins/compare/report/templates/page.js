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
  let shown; // paper is white: print in the light theme
  window.addEventListener("beforeprint", () => {
    shown = root.dataset.theme;
    root.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => {
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

// A badge of a failed method opens its error.
const openTarget = () => {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
window.addEventListener("hashchange", openTarget);
openTarget();
for (const badge of document.querySelectorAll("a.badge")) {
  badge.addEventListener("click", () => {
    document.getElementById(badge.hash.slice(1)).open = true;
  });
}

// Radar: boxes show and hide outlines.
for (const box of document.querySelectorAll("[data-for]")) {
  const outline = document.querySelector(`[data-outline="${box.dataset.for}"]`);
  const update = () => outline.classList.toggle("off", !box.checked);
  box.addEventListener("change", update);
  update(); // browsers restore boxes when a page is reloaded
}

// Coefficients: single values under the pointer or the arrow keys.
for (const figure of document.querySelectorAll("[data-heat]")) {
  const { tasks, keys, values } = JSON.parse(figure.querySelector("script").textContent);
  const picture = figure.querySelector(".picture");
  const output = figure.querySelector("output");
  const mark = document.createElement("span");
  mark.className = "mark";
  let [row, column] = [0, 0];
  const show = () => {
    const [height, width] = [100 / tasks.length, 100 / keys.length];
    Object.assign(mark.style, {
      left: `calc(${column * width}% - 2px)`, top: `${row * height}%`,
      width: `calc(${width}% + 4px)`, height: `${height}%`,
    });
    picture.append(mark);
    output.textContent = `${tasks[row]}, ${keys[column]}: ${values[row][column]}`;
  };
  output.hidden = false;
  picture.tabIndex = 0;
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const place = (share, count) => Math.min(Math.max(Math.floor(share * count), 0), count - 1);
    row = place((event.clientY - box.top) / box.height, tasks.length);
    column = place((event.clientX - box.left) / box.width, keys.length);
    show();
  });
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!move) return;
    event.preventDefault();
    row = Math.min(Math.max(row + move[0], 0), tasks.length - 1);
    column = Math.min(Math.max(column + move[1], 0), keys.length - 1);
    show();
  });
}

// Show the table of runs. A click or key press on a title sorts it, a text filters it, and rows stay in place while their
// values change.

import { count, duration, fixed, percent, short, whole } from "./format.js";

// Columns: title, hint, value to sort by, and text to show. Columns that are not in TEXTS are aligned to the right.
const COLUMNS = [
  { key: "name", title: "Run", value: (run) => run.name },
  { key: "status", title: "Status", value: (run) => run.status },
  { key: "bpb", title: "Val bpb", hint: "bits per byte at the last validation", value: (run) => run.bpb, text: (run) => fixed(run.bpb, 4) },
  { key: "best", title: "Best", hint: "lowest bits per byte of all validations", value: (run) => run.best, text: (run) => fixed(run.best, 4) },
  { key: "above", title: "Above floor", hint: "distance to the entropy of the text, which no model can be below (pretraining: last validation; fine-tuning: best)", value: (run) => run.above, text: (run) => percent(run.above) },
  { key: "text", title: "Text", hint: "text that the run is trained on; compare bits per byte only between runs of the same text", value: (run) => run.text, text: (run) => run.text || "–" },
  { key: "step", title: "Step", value: (run) => run.step, text: (run) => whole(run.step) + (run.max_steps ? " / " + whole(run.max_steps) : "") },
  { key: "tokens", title: "Tokens", value: (run) => run.tokens, text: (run) => count(run.tokens) },
  { key: "params", title: "Params", value: (run) => run.params, text: (run) => count(run.params) },
  { key: "speed", title: "Tokens/s", value: (run) => run.speed, text: (run) => whole(run.speed) },
  { key: "time", title: "Time", hint: "training time", value: (run) => run.time_s, text: (run) => duration(run.time_s) },
  { key: "started", title: "Started", value: (run) => run.started, text: (run) => day(run.started) },
  { key: "updated", title: "Updated", value: (run) => run.updated, text: (run) => day(run.updated) },
];
const TEXTS = ["name", "status", "text", "started", "updated"];

const day = (stamp) => (stamp ? stamp.slice(5, 16) : "–");

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export class Table {
  // on: {sort(key), toggle(ids, yes), open(id)}
  constructor(titles, rows, on) {
    [this.titles, this.rows, this.on, this.made] = [titles, rows, on, new Map()];
    this.all = element("input", { type: "checkbox", ariaLabel: "show the curves of all runs in the table" });
    this.all.addEventListener("change", () => on.toggle(this.shown.map((run) => run.id), this.all.checked));
    titles.append(element("th", { scope: "col" }, this.all));
    for (const { key, title, hint } of COLUMNS) {
      const button = element("button", { type: "button", textContent: title, title: hint ?? "" });
      button.addEventListener("click", () => on.sort(key));
      titles.append(element("th", { scope: "col", className: TEXTS.includes(key) ? "" : "number" }, button));
    }
    titles.append(element("th", { scope: "col", textContent: "Report" }));
  }

  // state: {sort, down, filter}; colors: run id -> CSS variable of its curve; opened: the run whose samples are shown
  show(runs, { sort, down, filter }, colors, opened) {
    const words = filter.toLowerCase().split(/\s+/);
    this.shown = runs.filter((run) => {
      const text = [run.name, run.overrides, run.text, run.live ? "live" : "", run.status, ...run.notes].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    const { value } = COLUMNS.find((column) => column.key === sort) ?? COLUMNS[COLUMNS.length - 1];
    const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b) * (down ? -1 : 1);
    this.shown.sort((a, b) => {
      const [x, y] = [value(a) ?? null, value(b) ?? null];
      if (x === null || y === null) return (x === null) - (y === null); // unknown values come last in either order
      return order(x, y) || a.name.localeCompare(b.name, "en", { numeric: true });
    });
    COLUMNS.forEach(({ key }, i) => {
      this.titles.children[i + 1].ariaSort = key === sort ? (down ? "descending" : "ascending") : "none";
    });
    const chosen = this.shown.filter((run) => colors.has(run.id)).length;
    this.all.checked = chosen > 0 && chosen === this.shown.length;
    this.all.indeterminate = chosen > 0 && chosen < this.shown.length;
    this.place(this.shown.map((run) => this.fill(run, colors.get(run.id), run.id === opened)));
  }

  // Replace the rows only if their order changed, and keep the keyboard focus on the same row.
  place(rows) {
    if (rows.length === this.rows.children.length && rows.every((row, i) => row === this.rows.children[i])) return;
    const focused = document.activeElement;
    this.rows.replaceChildren(...rows);
    if (this.rows.contains(focused)) focused.focus({ preventScroll: true });
  }

  fill(run, color, opened) {
    if (!this.made.has(run.id)) this.made.set(run.id, this.row(run.id));
    const row = this.made.get(run.id);
    row.className = opened ? "opened" : "";
    row.check.checked = color !== undefined;
    row.check.ariaLabel = `show the curve of ${run.name}`;
    row.check.style.accentColor = color ? `var(${color})` : "";
    COLUMNS.forEach((column, i) => {
      const cell = row.cells[i + 1];
      if (column.key === "name") {
        setText(row.open, run.name);
        setText(row.more, run.differs);
        row.more.title = run.overrides;
        setText(row.notes, run.notes.join("; "));
      } else if (column.key === "status") {
        row.badge.className = `badge ${run.live ? "live" : run.status}`;
        setText(row.badge, run.live ? "live" : run.status);
      } else {
        setText(cell, column.text(run));
      }
      if (column.key === "above") cell.classList.toggle("leak", run.above !== null && run.above < 0);
    });
    row.report.hidden = !run.report || sessionStorage.getItem("api-key") !== null; // a link cannot send the key
    return row;
  }

  row(id) {
    const row = element("tr");
    row.check = element("input", { type: "checkbox" });
    row.check.addEventListener("change", () => this.on.toggle([id], row.check.checked));
    row.open = element("button", { type: "button", className: "name", title: "show the samples of this run" });
    row.open.addEventListener("click", () => this.on.open(id));
    [row.more, row.notes] = [element("small"), element("small", { className: "note" })];
    row.badge = element("span");
    row.append(element("td", {}, row.check), element("th", { scope: "row" }, row.open, row.more, row.notes), element("td", {}, row.badge));
    for (const { key } of COLUMNS.slice(2)) row.append(element("td", { className: TEXTS.includes(key) ? "" : "number" }));
    row.report = element("a", { href: `/report?run=${encodeURIComponent(id)}`, target: "_blank", rel: "noopener", textContent: "report" });
    row.append(element("td", {}, row.report));
    return row;
  }
}

// Control the page. `state` holds what is shown; it is also kept in the address, so that a reload shows the same. The page
// asks the server for new data every few seconds.

import { Chart } from "./chart.js";
import { Table } from "./table.js";

const NEWEST_RUNS = 5; // number of newest runs (of the same text) that are shown if the user has chosen none
const COLORS = 10; // --c0 to --c9 in page.css; further curves use the same colors with dashes
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const FIRST_METRICS = [
  "val/bpb", "val/loss", "train/loss", "train/ce", "train/kl", "val/reward", "preference/accuracy", "preference/margin", "train/lr", "train/grad_norm", "speed/tokens_per_s",
];
const MAX_GATHERED_POINTS = 3000; // after so many appended points, the curve is loaded again with fewer points

const $ = (id) => document.getElementById(id);
const state = { metric: null, x: "step", smooth: 0, logX: false, logY: false, sort: "updated", down: true, filter: "", shown: null, sample: null };
let runs = [];
const slots = new Map(); // run id -> the number of its color, kept while the run is shown
const curves = new Map(); // run id -> {key, file, offset, keys, step, tokens, time_s, value}
let samples = { id: null, size: -1, list: [] };

const charts = new Map(); // group of runs whose values compare -> {figure, caption, chart}
const table = new Table($("titles"), $("rows"), {
  sort: (key) => change({ down: state.sort === key ? !state.down : !["name", "status", "bpb", "best", "above"].includes(key), sort: key }),
  toggle: (ids, yes) => {
    const others = shownIds().filter((id) => !ids.includes(id));
    change({ shown: yes ? [...others, ...ids] : others });
  },
  open: (id) => change({ sample: id }),
});

// A run that is training has many training losses before its first validation.
const metric = () => state.metric ?? (runs.some((run) => run.live && slots.has(run.id)) ? "train/loss" : "val/bpb");

const color = (slot) => `--c${slot % COLORS}`;
const dash = (slot) => DASHES[Math.floor(slot / COLORS) % DASHES.length];

function shownIds() {
  const known = new Set(runs.map((run) => run.id));
  if (state.shown) return state.shown.filter((id) => known.has(id));
  const drawable = runs.filter((run) => run.offset > 0).sort((a, b) => (b.updated ?? "").localeCompare(a.updated ?? ""));
  return drawable.filter((run) => textOf(run) === textOf(drawable[0])).slice(0, NEWEST_RUNS).map((run) => run.id);
}

// --- read data from the server ---------------------------------------------------------------------------------------

const key = sessionStorage.getItem("api-key"); // entered in the tab Chat, if the server needs one

async function get(path, query = {}) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
  const response = await fetch(`${path}?${new URLSearchParams(query)}`, { headers }).catch(() => {
    throw new Error("The server does not answer. If it was stopped, start it again.");
  });
  const answer = await response.json();
  if (response.status === 401) throw new Error("This server needs its API key: enter it in the tab Chat.");
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

// Read the points that were added since the last answer, or all points if another metric was chosen.
async function readCurve(run) {
  const previous = curves.get(run.id);
  const same = previous && previous.key === metric() && previous.value.length < MAX_GATHERED_POINTS;
  if (same && previous.file === run.file && previous.offset === run.offset) return;
  const key = metric();
  const curve = await get("/api/curve", { run: run.id, key, file: same ? previous.file : "", after: same ? previous.offset : 0 });
  if (!curve.fresh) for (const name of ["step", "tokens", "time_s", "value"]) curve[name] = [...previous[name], ...curve[name]];
  if (key === metric()) curves.set(run.id, { ...curve, key });
}

async function readSamples() {
  const run = runs.find((run) => run.id === state.sample);
  if (!run || (samples.id === run.id && samples.size === run.samples)) return;
  const list = await get("/api/samples", { run: run.id });
  const atEnd = samples.id !== run.id || Number($("sample").value) === samples.list.length - 1;
  samples = { id: run.id, size: run.samples, list };
  $("sample").max = Math.max(0, list.length - 1);
  if (atEnd) $("sample").value = $("sample").max;
}

async function read() {
  const shown = shownIds();
  for (const id of slots.keys()) if (!shown.includes(id)) slots.delete(id);
  for (const id of shown) {
    if (slots.has(id)) continue;
    const used = new Set(slots.values());
    let free = 0;
    while (used.has(free)) free += 1;
    slots.set(id, free);
  }
  if (!runs.some((run) => run.id === state.sample)) state.sample = shown[0] ?? runs[0]?.id ?? null;
  await Promise.all([...runs.filter((run) => slots.has(run.id)).map(readCurve), readSamples()]);
}

async function poll() {
  try {
    const answer = await get("/api/runs");
    runs = answer.runs;
    $("folder").textContent = answer.folder;
    document.title = `Positron · Runs in ${answer.folder}`;
    await read();
    show();
    trouble("");
  } catch (error) {
    trouble(error.message);
  }
  setTimeout(poll, runs.some((run) => run.live) ? 2000 : 5000);
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

// --- show data on the page -------------------------------------------------------------------------------------------

function show() {
  $("no-runs").hidden = runs.length > 0;
  $("main").hidden = runs.length === 0;
  const live = runs.filter((run) => run.live).length;
  $("summary").textContent = `${runs.length} ${runs.length === 1 ? "run" : "runs"} in ${$("folder").textContent}` + (live ? `, ${live} live` : "");
  showControls();
  showCurves();
  showSample();
  showDifferences().catch((error) => trouble(error.message));
  const colors = new Map([...slots].map(([id, slot]) => [id, color(slot)]));
  table.show(runs, state, colors, state.sample);
  $("matches").textContent = table.shown.length < runs.length ? `${table.shown.length} of ${runs.length}` : "";
}

function showControls() {
  const keys = new Set([...curves].filter(([id]) => slots.has(id)).flatMap(([, curve]) => curve.keys));
  keys.add(metric());
  const first = FIRST_METRICS.filter((key) => keys.has(key));
  const groups = Map.groupBy([...keys].sort().filter((key) => !first.includes(key)), (key) => key.split("/")[0]);
  const wanted = JSON.stringify([first, ...groups]);
  if ($("metric").dataset.keys !== wanted) {
    $("metric").dataset.keys = wanted;
    const options = (members) => members.map((key) => new Option(key, key));
    $("metric").replaceChildren(...options(first), ...[...groups].map(([group, members]) => {
      const made = Object.assign(document.createElement("optgroup"), { label: group });
      made.append(...options(members));
      return made;
    }));
  }
  for (const [name, value] of Object.entries({ ...state, metric: metric() })) {
    if (["metric", "x", "smooth", "filter"].includes(name) && $(name).value !== String(value)) $(name).value = value;
  }
  for (const name of ["logX", "logY"]) $(name).checked = state[name];
  const choices = [...new Set([...slots.keys(), state.sample])].filter((id) => id !== null);
  if ($("sample-run").dataset.ids !== JSON.stringify(choices)) {
    $("sample-run").dataset.ids = JSON.stringify(choices);
    $("sample-run").replaceChildren(...choices.map((id) => new Option(runs.find((run) => run.id === id).name, id)));
  }
  $("sample-run").value = state.sample ?? "";
}

// Identify the text of a run. A fingerprint is used, because a text with another size or split counts as another text.
const textOf = (run) => run.fingerprint || run.text;

// Losses of different texts do not compare, so each text has a chart with its own axis and floor.
const dependsOnText = (key) => /^(val|train)\/(bpb|loss|perplexity)$/.test(key);

// Validation losses do not compare either if they were measured on different beginnings of the validation text; `validated` of
// two runs is equal if they do.
function groupOf(run) {
  if (!dependsOnText(metric())) return "";
  return metric().startsWith("val/") ? run.validated : textOf(run);
}

function showCurves() {
  const shown = runs.filter((run) => slots.has(run.id)).sort((a, b) => slots.get(a.id) - slots.get(b.id));
  const groups = Map.groupBy(shown, groupOf);
  const drawn = [...groups].filter(([name, group]) => draw(name, group, groups.size > 1 ? captionOf(group, groups) : "")).map(([name]) => name);
  for (const [name, { figure }] of charts) {
    if (drawn.includes(name)) continue;
    figure.remove();
    charts.delete(name);
  }
  $("chart-note").textContent = drawn.length ? noteOn(drawn.map((name) => groups.get(name)), shown) : "";
  $("chart-empty").hidden = drawn.length > 0;
  $("chart-empty").textContent = shown.length ? `None of the selected runs has a value of ${metric()} yet.` : "Tick runs in the table to see their curves.";
}

// Name the text of a group of runs; also how much of it is validated, if another group has the same text.
function captionOf([run], groups) {
  const text = run.text || "unknown text";
  const same = [...groups.values()].filter(([other]) => textOf(other) === textOf(run));
  const limit = run.val_bytes !== null ? `${run.val_bytes.toLocaleString("en-US")} bytes` : run.val_tokens !== null ? `at most ${run.val_tokens.toLocaleString("en-US")} tokens` : "";
  return same.length > 1 && limit ? `${text}, validated on ${limit}` : text;
}

// Draw the curves of one group of runs; returns whether there was anything to draw.
function draw(name, group, title) {
  const lines = group.filter((run) => curves.get(run.id)?.key === metric()).map((run) => {
    const curve = curves.get(run.id);
    const x = {
      step: curve.step, tokens: curve.tokens, time: curve.time_s,
      flops: run.flops_per_token ? curve.tokens.map((tokens) => tokens === null ? null : tokens * run.flops_per_token) : curve.tokens.map(() => null),
    }[state.x];
    const slot = slots.get(run.id);
    return { name: run.name, color: color(slot), dash: dash(slot), x, y: curve.value };
  });
  const { floor } = group.find((run) => run.floor) ?? {};
  const floors = floor && metric() === "val/bpb" ? [{ bpb: floor, name: "floor: the entropy of the text", color: "--floor" }] : [];
  if (!charts.has(name)) charts.set(name, emptyChart());
  const { figure, caption, chart } = charts.get(name);
  if (!figure.isConnected) $("charts").append(figure);
  caption.textContent = title;
  const { x, smooth, logX, logY } = state;
  return chart.show(lines, { key: metric(), x, smooth: Number(smooth), logX, logY, floors });
}

function emptyChart() {
  const [figure, caption, plot, legend] = ["figure", "figcaption", "div", "ul"].map((tag) => document.createElement(tag));
  [plot.className, legend.className] = ["plot", "legend"];
  plot.role = "img";
  plot.ariaLabel = "Curves of the selected runs; the table below shows the last values of the runs";
  figure.append(caption, plot, legend);
  return { figure, caption, chart: new Chart(plot, legend) };
}

// Return a note for the reader of the charts: why there are several, or why only points are visible.
function noteOn(drawn, shown) {
  const texts = new Set(drawn.map(([run]) => textOf(run))).size;
  if (drawn.length > texts) return `The selected runs are validated on different texts, or on beginnings of different length of one text (train.val_tokens, tokenizer), so their ${metric()} cannot be compared: each has its own chart.`;
  if (texts > 1) return `The selected runs are trained on ${texts} different texts, whose ${metric()} cannot be compared: each text has its own chart.`;
  const lengths = shown.map((run) => curves.get(run.id)).filter((curve) => curve?.key === metric()).map((curve) => curve.value.length);
  return lengths.every((length) => length <= 1) ? "Each curve has only one point so far." : "";
}

// Show the settings that differ if exactly two runs are selected.
async function showDifferences() {
  const two = [...slots].sort((a, b) => a[1] - b[1]).map(([id]) => runs.find((run) => run.id === id)).filter((run) => run);
  $("differences").hidden = two.length !== 2;
  if (two.length !== 2) return;
  const pair = JSON.stringify(two.map((run) => [run.id, run.started]));
  if ($("differences").dataset.pair === pair) return;
  const list = await get("/api/differences", { run: two[0].id, other: two[1].id });
  $("differences").dataset.pair = pair;
  $("differences-title").textContent = list.length ? "Settings that differ" : "The two runs have the same settings";
  const line = (tag, cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement(tag), { textContent: text })));
    return row;
  };
  $("differences-rows").replaceChildren(...(list.length ? [line("th", ["setting", two[0].name, two[1].name])] : []), ...list.map((cells) => line("td", cells)));
}

function showSample() {
  const { list } = samples;
  const sample = list[Number($("sample").value)];
  $("sample-place").hidden = list.length < 2;
  $("sample-head").textContent = sample?.head ?? "";
  $("sample-text").textContent = sample?.text ?? "This run has written no sample yet.";
  $("sample-text").classList.toggle("faint", !sample);
}

// --- react to the user -----------------------------------------------------------------------------------------------

async function change(changes) {
  Object.assign(state, changes);
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(state)) if (value !== null) parameters.set(name, JSON.stringify(value));
  history.replaceState(null, "", `#${parameters}`);
  try {
    await read();
    show();
  } catch (error) {
    trouble(error.message);
  }
}

const isText = (value) => typeof value === "string", isFlag = (value) => typeof value === "boolean";
const isTextOrNull = (value) => value === null || isText(value);
const VALID = {
  metric: isTextOrNull, x: (value) => [...$("x").options].some((option) => option.value === value), smooth: (value) => value >= 0 && value <= 0.99,
  logX: isFlag, logY: isFlag, sort: isText, down: isFlag, filter: isText, shown: (value) => value === null || Array.isArray(value), sample: isTextOrNull,
};

// Take the state from the address; a value that somebody has changed to one that the page cannot use is left out.
function restore() {
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    try {
      const value = JSON.parse(text);
      if (Object.hasOwn(VALID, name) && VALID[name](value)) state[name] = value;
    } catch {
      // not JSON
    }
  }
}

for (const name of ["metric", "x"]) $(name).addEventListener("change", () => change({ [name]: $(name).value }));
for (const name of ["smooth", "filter"]) $(name).addEventListener("input", () => change({ [name]: $(name).value }));
for (const name of ["logX", "logY"]) $(name).addEventListener("change", () => change({ [name]: $(name).checked }));
$("sample-run").addEventListener("change", () => change({ sample: $("sample-run").value }));
$("sample").addEventListener("input", showSample);
for (const form of document.forms) form.addEventListener("submit", (event) => event.preventDefault());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);

restore();
poll();

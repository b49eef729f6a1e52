// Control the page. `state` holds what is shown; it is also kept in the address, so that a reload shows the same. The page
// asks the server for new data every few seconds.

import { Chart } from "./chart.js";
import { Table } from "./table.js";

const NEWEST_RUNS = 5; // number of newest runs (of the same text) that are shown if the user has chosen none
const COLORS = 10; // --c0 to --c9 in page.css; further curves use the same colors with dashes
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3]];
const FIRST_METRICS = ["val/bpb", "val/loss", "train/loss", "train/lr", "train/grad_norm", "speed/tokens_per_s"];
const MAX_GATHERED_POINTS = 3000; // after so many appended points, the curve is loaded again with fewer points

const $ = (id) => document.getElementById(id);
const state = { metric: "val/bpb", x: "step", smooth: 0, logX: false, logY: false, sort: "updated", down: true, filter: "", shown: null, sample: null };
let runs = [];
const slots = new Map(); // run id -> the number of its color, kept while the run is shown
const curves = new Map(); // run id -> {key, file, offset, keys, step, tokens, time_s, value}
let samples = { id: null, size: -1, list: [] };

const chart = new Chart($("chart"), $("legend"));
const table = new Table($("titles"), $("rows"), {
  sort: (key) => change({ down: state.sort === key ? !state.down : !["name", "status", "bpb", "best", "above"].includes(key), sort: key }),
  toggle: (ids, yes) => {
    const others = shownIds().filter((id) => !ids.includes(id));
    change({ shown: yes ? [...others, ...ids] : others });
  },
  open: (id) => change({ sample: id }),
});

const color = (slot) => `--c${slot % COLORS}`;
const dash = (slot) => DASHES[Math.floor(slot / COLORS) % DASHES.length];

function shownIds() {
  const known = new Set(runs.map((run) => run.id));
  if (state.shown) return state.shown.filter((id) => known.has(id));
  const drawable = runs.filter((run) => run.offset > 0).sort((a, b) => (b.updated ?? "").localeCompare(a.updated ?? ""));
  return drawable.filter((run) => textOf(run) === textOf(drawable[0])).slice(0, NEWEST_RUNS).map((run) => run.id);
}

// --- read data from the server ---------------------------------------------------------------------------------------

async function get(path, query = {}) {
  const response = await fetch(`${path}?${new URLSearchParams(query)}`);
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

// Read the points that were added since the last answer, or all points if another metric was chosen.
async function readCurve(run) {
  const previous = curves.get(run.id);
  const same = previous && previous.key === state.metric && previous.value.length < MAX_GATHERED_POINTS;
  if (same && previous.file === run.file && previous.offset === run.offset) return;
  const key = state.metric;
  const curve = await get("/api/curve", { run: run.id, key, file: same ? previous.file : "", after: same ? previous.offset : 0 });
  if (!curve.fresh) for (const name of ["step", "tokens", "time_s", "value"]) curve[name] = [...previous[name], ...curve[name]];
  if (key === state.metric) curves.set(run.id, { ...curve, key });
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
    document.title = `Positron · ${answer.folder}`;
    await read();
    show();
    trouble("");
  } catch (error) {
    trouble(error instanceof TypeError ? "The dashboard's server does not answer. If it was stopped, start it again." : error.message);
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
  keys.add(state.metric);
  const first = FIRST_METRICS.filter((key) => keys.has(key));
  const groups = { "": first };
  for (const key of [...keys].sort().filter((key) => !first.includes(key))) (groups[key.split("/")[0]] ??= []).push(key);
  const wanted = JSON.stringify(groups);
  if ($("metric").dataset.keys !== wanted) {
    $("metric").dataset.keys = wanted;
    $("metric").replaceChildren(...Object.entries(groups).flatMap(([group, members]) => {
      const options = members.map((key) => new Option(key, key));
      if (!group) return options;
      const made = Object.assign(document.createElement("optgroup"), { label: group });
      made.append(...options);
      return [made];
    }));
  }
  for (const name of ["metric", "x", "smooth", "filter"]) if ($(name).value !== String(state[name])) $(name).value = state[name];
  for (const name of ["logX", "logY"]) $(name).checked = state[name];
  const choices = [...new Set([...slots.keys(), state.sample])].filter((id) => id !== null);
  if ($("sample-run").dataset.ids !== JSON.stringify(choices)) {
    $("sample-run").dataset.ids = JSON.stringify(choices);
    $("sample-run").replaceChildren(...choices.map((id) => new Option(runs.find((run) => run.id === id).name, id)));
  }
  $("sample-run").value = state.sample ?? "";
}

function showCurves() {
  const shown = runs.filter((run) => slots.has(run.id)).sort((a, b) => slots.get(a.id) - slots.get(b.id));
  const lines = shown.filter((run) => curves.get(run.id)?.key === state.metric).map((run) => {
    const curve = curves.get(run.id);
    const x = {
      step: curve.step, tokens: curve.tokens, time: curve.time_s,
      flops: run.flops_per_token ? curve.tokens.map((tokens) => tokens === null ? null : tokens * run.flops_per_token) : curve.tokens.map(() => null),
    }[state.x];
    const slot = slots.get(run.id);
    return { name: run.name, color: color(slot), dash: dash(slot), x, y: curve.value };
  });
  const floors = state.metric === "val/bpb" ? floorsOf(shown) : [];
  const { metric: key, x, smooth, logX, logY } = state;
  const drawn = chart.show(lines, { key, x, smooth: Number(smooth), logX, logY, floors });
  $("chart").hidden = !drawn;
  $("chart-note").textContent = drawn ? noteOn(shown, lines) : "";
  $("chart-empty").hidden = drawn;
  $("chart-empty").textContent = shown.length ? `None of the selected runs has a value of ${key} yet.` : "Tick runs in the table to see their curves.";
}

// Identify the text of a run. A fingerprint is used, because a text with another size or split counts as another text.
const textOf = (run) => run.fingerprint || run.text;

// Return a floor (the entropy of the text) for each text. It has the color of the run if only one run has this text.
function floorsOf(shown) {
  const texts = new Map();
  for (const run of shown.filter((run) => run.floor)) texts.set(textOf(run), [...(texts.get(textOf(run)) ?? []), run]);
  return [...texts.values()].map((group) => ({
    bpb: group[0].floor,
    name: shown.length === group.length ? "floor: the entropy of the text" : `floor of ${group[0].text}, for ${group.map((run) => run.name).join(", ")}`,
    color: texts.size > 1 && group.length === 1 ? color(slots.get(group[0].id)) : "--floor",
  }));
}

// Return a note for the reader of the chart: that the curves cannot be compared, or why only points are visible.
function noteOn(shown, lines) {
  const texts = new Map(shown.map((run) => [textOf(run), run.text || "unknown"]));
  const about = /^(val|train)\/(bpb|loss|perplexity)$/.test(state.metric);
  if (about && texts.size > 1) {
    const names = [...new Set(texts.values())].join(", ");
    return `These runs are trained on ${texts.size} different texts (${names}), so their values of ${state.metric} cannot be compared.`;
  }
  return lines.every((line) => line.y.length <= 1) ? "Each curve has only one point so far." : "";
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

function restore() {
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    try {
      if (name in state) state[name] = JSON.parse(text);
    } catch {
      trouble(`The value of ${name} in the address of this page cannot be read; the default is used.`);
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

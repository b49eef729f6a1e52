// The inspector: a prompt, and everything about what a model makes of it. `mount(root, source)` builds it; see sources.js.

import { el, whole } from "../dom.js";
import { createAttention, createLens, createNext, createParts, createRules, createStrip, createWriter } from "./panels.js";

const CONTINUATION = { max_tokens: 40, temperature: 0, seed: 0 }, ANSWER = { ...CONTINUATION, max_tokens: 256 };
const MOST_TOKENS = 2000; // MAX_CONTINUATION of positron/inspection/subject.py

/** Settings of sampling: name, label, smallest and largest value, step, start; null at `off`. */
const SLIDERS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, value: 0.8 },
  { name: "top_p", label: "Top-p", min: 0.05, max: 1, step: 0.01, value: 0.95 },
  { name: "top_k", label: "Top-k (0: all)", min: 0, max: 100, step: 1, value: 0, off: 0 },
  { name: "min_p", label: "Min-p", min: 0, max: 0.5, step: 0.01, value: 0, off: 0 },
];

/** Build the inspector inside `root`. Returns {look(prompt), close()}. */
export function mount(root, source, { prompt = "", proof = null } = {}) {
  const state = {
    data: null, truth: null, scores: null, regrets: null, history: null, position: 0, colour: "bits", head: { layer: 0, head: 0 },
    ablations: [], step: null, plainText: null, plainKey: "", settings: {}, takeFocus: false,
  };
  const continuation = source.chats ? ANSWER : CONTINUATION;
  let turn = 0, writing = 0; // a newer look or text stops the older one
  const trouble = el("p", { class: "look-trouble", role: "alert" }), status = el("p", { class: "faint", role: "status" });

  const act = {
    position: () => state.position,
    colourBy(colour) {
      state.colour = colour;
      show();
    },
    moveTo(by, takeFocus) {
      const last = state.data.tokens.length - 1;
      state.position = Math.min(last, Math.max(0, state.position + by));
      state.takeFocus = takeFocus;
      show();
      state.takeFocus = false;
      refocus();
    },
    choose(head) {
      state.head = head;
      show();
    },
    append(text) {
      box.value += text;
      look();
    },
    ablate(ablations) {
      state.ablations = ablations;
      look(state.position);
    },
    toggle({ layer, part }) {
      const without = state.ablations.filter((ablation) => ablation.layer !== layer || ablation.part !== part);
      act.ablate(without.length < state.ablations.length ? without : [...without, { layer, part }]);
    },
    async measure() {
      await guarded(async () => {
        status.textContent = "Measuring all heads …";
        state.scores = await source.scores();
        status.textContent = "";
        if (state.data) show();
      });
    },
    write,
    stop: () => writing++,
  };

  const strip = createStrip(act), next = createNext(act), attention = createAttention(act), lens = createLens(act);
  const parts = createParts(act), rules = createRules(), writer = createWriter(act);
  const panels = [strip, next, attention, lens, parts, rules];

  const box = el("textarea", { id: "look-prompt", rows: "2", spellcheck: "false", autocomplete: "off" });
  box.value = prompt;
  box.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    look();
  });
  const form = el("form", { class: "card look-form", onsubmit: (event) => (event.preventDefault(), look()) },
    el("label", { for: "look-prompt" }, source.chats ? "Message" : "Prompt"), box,
    el("p", { class: "look-actions" }, el("button", { type: "submit", class: "button primary" }, "Look inside"),
      source.stored ? el("button", { type: "button", class: "button", onclick: () => ((box.value = source.stored.prompt), look()) }, "Its own prompt") : null,
      el("span", { class: "faint" }, "Enter looks, Shift+Enter begins a new line.")));

  const seed = el("input", { type: "number", min: "0", max: "4294967295", step: "1", value: "0" });
  const length = el("input", { type: "number", min: "1", max: String(MOST_TOKENS), step: "1", value: "200" });
  const sliders = SLIDERS.map(({ name, label, value, off, ...range }) => {
    const output = el("output", {}, String(value)), input = el("input", { type: "range", name, ...range });
    input.value = String(value);
    const read = () => {
      const number = Number(input.value);
      state.settings[name] = number === off ? null : number;
      output.textContent = String(number);
    };
    read();
    input.addEventListener("input", () => {
      read();
      if (state.data) next.show(state);
    });
    return el("label", { class: "look-slider" }, el("span", {}, label), input, output);
  });
  const sampling = el("section", { class: "card look-sampling", "aria-label": "Sampling" }, ...sliders,
    el("p", { class: "look-actions" }, el("label", {}, "Seed ", seed), el("label", {}, "At most ", length, " tokens")));

  const past = el("section", { class: "card look-history", "aria-label": "Training history", hidden: true });
  const view = el("div", { class: "look-view", hidden: true },
    strip.element, el("div", { class: "look-pair" }, next.element, el("div", { class: "look-side" }, sampling, writer.element)),
    attention.element, el("div", { class: "look-pair" }, lens.element, parts.element), rules.element);
  const shell = el("div", { class: "look" }, form, past, trouble, status, view, proof);
  root.replaceChildren(shell);

  const isDark = window.matchMedia("(prefers-color-scheme: dark)");
  const redraw = () => state.data && attention.show(state, true);
  isDark.addEventListener("change", redraw);
  window.addEventListener("resize", redraw);

  function show() {
    for (const panel of panels) panel.show(state);
  }

  async function guarded(task) {
    trouble.textContent = "";
    try {
      await task();
    } catch (error) {
      trouble.textContent = error.message;
      status.textContent = "";
    }
  }

  function request(prompt, focus) {
    return { prompt, step: state.step, ablations: state.ablations, top: 10, focus };
  }

  /** Read the prompt; `position` is kept if it is given and the prompt is the one that is shown, else the last one. */
  async function look(position = null) {
    const mine = ++turn, stopped = () => mine !== turn;
    // what is typed during the look belongs to the next one
    const prompt = box.value, asked = request(prompt, prompt === state.data?.prompt ? position : null);
    await guarded(async () => {
      status.textContent = "Reading …";
      const key = JSON.stringify([prompt, asked.step]);
      if (state.plainKey !== key && asked.ablations.length) {
        const plain = await source.look({ ...asked, focus: null, ablations: [], attention: [], continuation }, stopped);
        if (stopped()) return;
        state.plainText = plain.continuation;
        state.plainKey = key;
      }
      const data = await source.look({ ...asked, continuation }, stopped);
      if (stopped() || data === null) return;
      const truth = asked.ablations.length ? null : await source.truth({ prompt, step: asked.step });
      if (stopped()) return;
      Object.assign(state, { data, truth, position: data.focus.position });
      if (!asked.ablations.length) Object.assign(state, { plainText: data.continuation, plainKey: key });
      state.head = { layer: Math.min(state.head.layer, data.shape.n_layer - 1), head: Math.min(state.head.head, data.shape.n_head - 1) };
      view.hidden = false;
      status.textContent = `${data.run}: step ${whole(data.step)}, ${whole(data.shape.parameters)} parameters, ${data.shape.n_layer} layers of ${data.shape.n_head} heads.`;
      show();
    });
  }

  /** Fetch the distribution of the chosen position. */
  async function refocus() {
    const mine = turn, { position } = state;
    const isOld = () => mine !== turn || position !== state.position;
    await guarded(async () => {
      const data = await source.look({ ...request(state.data.prompt, position), attention: [] }, isOld);
      if (data === null || isOld()) return;
      state.data.focus = data.focus;
      next.show(state);
    });
  }

  async function write() {
    const mine = ++writing, prompt = box.value;
    let last = { tokens: null, seconds: null }, message = null;
    writer.begin(source.chats ? `${prompt}\n\n` : prompt);
    const settings = { ...state.settings, seed: Number(seed.value) || 0, max_tokens: Math.min(MOST_TOKENS, Math.max(1, Number(length.value) || 1)) };
    try {
      for await (const piece of source.generate({ prompt, step: state.step, ablations: state.ablations, ...settings }, () => mine !== writing)) {
        last = piece;
        writer.add(piece.text);
      }
    } catch (error) {
      message = error.message;
    }
    writer.end(last, message);
  }

  async function showHistory() {
    state.history = await source.history();
    if (!state.history) return;
    const { points } = state.history, label = el("output", {});
    const slider = el("input", { type: "range", min: "0", max: String(points.length), step: "1" });
    slider.value = String(points.length);
    const read = () => {
      const point = points[Number(slider.value)];
      state.step = point?.step ?? null;
      label.textContent = point
        ? `step ${whole(point.step)}${point.tokens === null ? "" : `, ${whole(point.tokens)} tokens`}${point.val_bpb === null ? "" : `, ${point.val_bpb.toFixed(3)} bits per byte`}`
        : `best checkpoint, step ${whole(state.history.best)}`;
    };
    read();
    slider.addEventListener("input", read);
    slider.addEventListener("input", () => look(state.position));
    past.replaceChildren(el("label", { class: "look-slider" }, el("span", {}, "Training history"), slider, label));
    past.hidden = false;
  }

  guarded(async () => {
    await look();
    await showHistory();
    if (source.stored) state.scores = await source.scores();
    state.regrets = await source.regrets();
    if (state.data) show();
  });

  return {
    look(text) {
      box.value = text;
      return look();
    },
    close() {
      turn++;
      writing++;
      isDark.removeEventListener("change", redraw);
      window.removeEventListener("resize", redraw);
    },
  };
}

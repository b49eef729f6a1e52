// The form of settings: a preset, the sampling values, the limit, the seed and the system prompt.

import { MOST_TOKENS } from "./api.js";

const LARGEST = 2 ** 52; // below it a number of the page and of an exported file is exact, and so are the seeds of the next answers

export const NUMBERS = [
  { key: "temperature", label: "Temperature", min: 0, max: 5, step: 0.05, hint: "0: always the likeliest token; higher: more varied" },
  { key: "top_p", label: "Top-p", min: 0.01, max: 1, step: 0.01, optional: true, hint: "sample from the likeliest tokens with this total probability; empty: all" },
  { key: "top_k", label: "Top-k", min: 1, max: LARGEST, step: 1, optional: true, hint: "sample from this many of the likeliest tokens; empty: all" },
  { key: "min_p", label: "Min-p", min: 0.001, max: 1, step: 0.001, optional: true, hint: "sample from tokens with at least this share of the largest probability; empty: all" },
  { key: "repetition_penalty", label: "Repetition penalty", min: 1, max: 5, step: 0.05, hint: "1: none; higher: repeats fewer tokens" },
  { key: "max_tokens", label: "Longest answer", min: 1, max: MOST_TOKENS, step: 1, optional: true, hint: "in tokens; empty: until the answer ends or is as long as the context" },
  { key: "seed", label: "Seed", min: 0, max: LARGEST, step: 1, hint: "the same seed and settings give the same answer" },
];

export class Settings {
  // form: where the fields are made; presets: name -> values; changed(values): called after each valid change
  constructor(form, presets, changed) {
    [this.form, this.presets, this.changed, this.fields] = [form, presets, changed, new Map()];
    this.preset = document.createElement("select");
    this.preset.append(...[...Object.keys(presets), "custom"].map((name) => new Option(name, name)));
    this.preset.addEventListener("change", () => {
      if (this.preset.value === "custom") return;
      this.show({ ...this.values, ...presets[this.preset.value] });
      changed(this.values);
    });
    form.append(labelled("Preset", this.preset, "values for the fields beside it"));
    for (const field of NUMBERS) {
      const input = Object.assign(document.createElement("input"), { type: "number", min: field.min, max: field.max, step: field.step, required: !field.optional });
      input.addEventListener("change", () => this.take(field, input));
      this.fields.set(field.key, input);
      form.append(labelled(field.label, input, field.hint));
    }
    this.system = Object.assign(document.createElement("textarea"), { rows: 2, placeholder: "Text that the model reads before the conversation" });
    this.system.addEventListener("change", () => {
      this.values.system = this.system.value;
      changed(this.values);
    });
    const wide = labelled("System prompt", this.system, "read by models that were fine-tuned on conversations");
    wide.className = "wide";
    form.append(wide);
    form.addEventListener("submit", (event) => event.preventDefault());
  }

  // The values of a new conversation.
  initial(preset) {
    return { ...this.presets[preset], max_tokens: null, seed: 0, system: "" };
  }

  show(values) {
    this.values = values;
    for (const [key, input] of this.fields) input.value = values[key] ?? "";
    this.system.value = values.system;
    this.showPreset();
  }

  take(field, input) {
    if (!input.reportValidity()) return;
    this.values[field.key] = input.value === "" ? null : Number(input.value);
    this.showPreset();
    this.changed(this.values);
  }

  showPreset() {
    const same = ([, preset]) => Object.entries(preset).every(([key, value]) => (this.values[key] ?? null) === value);
    this.preset.value = Object.entries(this.presets).find(same)?.[0] ?? "custom";
  }
}

function labelled(text, field, hint) {
  const label = document.createElement("label");
  label.append(text, field);
  label.title = hint;
  return label;
}

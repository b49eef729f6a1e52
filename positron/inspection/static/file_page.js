// The start of a file that positron/inspection/html_file.py wrote: unpack what is stored in it, prove it, show it.

import { el, whole } from "../dom.js";
import { GPT, compileKernels } from "./engine.js";
import { mount } from "./inspector.js";
import { FileSource, speedOf } from "./sources.js";
import { createTokenizer } from "./tokenizer.js";
import { bytesOfBase64, bytesOfBase85, unpackWeights, unzip } from "./weights.js";

const stored = (id) => document.getElementById(id).textContent;

/** Compare the logits that PyTorch computed when the file was written with those of this page. */
function prove(model, { ids, logits }) {
  const V = model.config.vocab_size;
  let difference = 0;
  model.reset();
  model.ablate([]);
  const began = performance.now();
  ids.forEach((id, t) => {
    const here = model.step(id);
    for (let i = 0; i < V; i++) difference = Math.max(difference, Math.abs(here[i] - logits[t * V + i]));
  });
  return { difference, milliseconds: performance.now() - began };
}

async function begin() {
  const facts = JSON.parse(new TextDecoder().decode(await unzip(bytesOfBase85(stored("facts")))));
  const weights = await unzip(bytesOfBase85(stored("weights")));
  const logits = new Float32Array((await unzip(bytesOfBase85(stored("logits")))).buffer);
  const kernels = location.hash === "#js" ? null : await compileKernels(bytesOfBase64(stored("kernels").trim()));
  const model = await GPT.create(facts.config, unpackWeights(facts.tensors, weights), kernels);
  const { difference, milliseconds } = prove(model, { ids: facts.proof, logits });
  const speed = el("strong", { id: "speed" }, "–");
  const proof = el("section", { class: "card", "aria-labelledby": "proof" },
    el("h2", { id: "proof" }, "Computed here, and the same"),
    el("p", {}, "Largest difference between the logits of PyTorch, stored in this file, and those that this page has just computed: ",
      el("strong", { id: "difference" }, difference.toExponential(1)),
      ` (${whole(facts.proof.length)} tokens, ${whole(model.config.vocab_size)} logits each, ${Math.round(milliseconds)} ms).`),
    el("p", {}, "Speed in this browser: ", speed, " tokens per second, measured on the last text that it wrote."),
    el("p", { class: "faint" }, `Weights: ${whole(facts.shape.parameters)}, rounded to ${facts.bits} bits. Engine: JavaScript` +
      `${model.usesWasm ? " with WebAssembly (SIMD); add #js to the address to compute without" : ""}. The file needs no network.`));
  const source = new FileSource(model, createTokenizer(facts.tokenizer), facts, (text) => {
    const perSecond = speedOf(text);
    if (perSecond !== null) speed.textContent = whole(Math.round(perSecond));
  });
  mount(document.getElementById("inspector"), source, { prompt: facts.prompt, proof });
}

begin().catch((error) => {
  const trouble = el("p", { class: "look-trouble", role: "alert" }, `This browser cannot show the file: ${error.message}`);
  document.getElementById("inspector").replaceChildren(trouble);
});

// Run each case of a JSON file through the engine, with WebAssembly and without; write what it computed as JSON.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , folder, input, output] = process.argv;
const load = (name) => import(pathToFileURL(`${folder}/${name}`).href);
const { GPT, compileKernels } = await load("engine.js");
const { unpackWeights, unzip, bytesOfBase64 } = await load("weights.js");
const { distribution, draw, Random } = await load("sampling.js");

const bytes = readFileSync(`${folder}/engine.wasm`);
const kernels = await compileKernels(bytes);
const base64 = (floats) => Buffer.from(floats.buffer, floats.byteOffset, floats.byteLength).toString("base64");

async function run(given, compiled) {
  const content = await unzip(bytesOfBase64(given.content));
  const model = await GPT.create(given.config, unpackWeights(given.tensors, content), compiled);
  const V = given.config.vocab_size, T = given.ids.length, D = given.config.n_layer + 1;
  const logits = new Float32Array(T * V), residual = new Float32Array(D * T);
  const attention = new Float32Array(given.config.n_layer * given.config.n_head * T * T);
  model.ablate(given.ablations ?? []);
  const probe = {
    residual: (depth, t, x) => (residual[depth * T + t] = Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / x.length)),
    attention: (layer, head, t, shares, first) =>
      attention.set(shares, ((layer * given.config.n_head + head) * T + t) * T + first),
  };
  given.ids.forEach((id, t) => logits.set(model.step(id, probe), t * V));
  model.reset();
  const greedy = [];
  let now = model.read(given.ids.slice(0, 4));
  while (greedy.length < given.greedy) {
    const id = distribution(now, { temperature: 0 }).ids[0];
    greedy.push(id);
    now = model.continue(id);
  }
  model.reset();
  const sampled = [], random = new Random(given.seed ?? 0);
  now = model.read(given.ids.slice(0, 4));
  while (given.sampling && sampled.length < given.greedy) {
    const id = draw(distribution(now, given.sampling), random);
    sampled.push(id);
    now = model.continue(id);
  }
  return { logits: base64(logits), attention: base64(attention), residual: base64(residual), greedy, sampled };
}

const resultOf = (given, compiled) => run(given, compiled).catch((error) => ({ error: error.message }));

const results = [];
for (const given of JSON.parse(readFileSync(input, "utf8"))) {
  results.push({ wasm: await resultOf(given, kernels), js: await resultOf(given, null) });
}
writeFileSync(output, JSON.stringify({ valid: WebAssembly.validate(bytes), compiled: kernels !== null, results }));

// Look at each case of a JSON file as a page of one file does; write the answers and the shown speeds as JSON. A clock runs on
// which the model reads a token of a prompt in 100 ms, and continues a text in 20 ms a token.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , folder, input, output] = process.argv;
const load = (name) => import(pathToFileURL(`${folder}/${name}`).href);
const { GPT } = await load("engine.js");
const { FileSource, speedOf } = await load("sources.js");
const { createTokenizer } = await load("tokenizer.js");
const { bytesOfBase64, unpackWeights, unzip } = await load("weights.js");

const results = [];
let now = 0;
globalThis.performance = { now: () => now };

class TimedGPT extends GPT {
  step(...values) {
    now += 100;
    return super.step(...values);
  }

  continue(id) {
    const began = now, logits = super.continue(id);
    now = began + 20;
    return logits;
  }
}

for (const { config, tensors, content, tokenizer, stored, request } of JSON.parse(readFileSync(input, "utf8"))) {
  const model = new TimedGPT(config, unpackWeights(tensors, await unzip(bytesOfBase64(content))), null);
  await model.load(null);
  let speed = null;
  const source = new FileSource(model, createTokenizer(tokenizer), stored, (text) => (speed = speedOf(text)));
  results.push({ data: await source.look(request), speed });
}
writeFileSync(output, JSON.stringify(results));

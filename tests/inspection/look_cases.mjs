// Look at each case of a JSON file as a page of one file does; write the answers as JSON.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , folder, input, output] = process.argv;
const load = (name) => import(pathToFileURL(`${folder}/${name}`).href);
const { GPT } = await load("engine.js");
const { FileSource } = await load("sources.js");
const { createTokenizer } = await load("tokenizer.js");
const { bytesOfBase64, unpackWeights, unzip } = await load("weights.js");

const results = [];
for (const { config, tensors, content, tokenizer, stored, request } of JSON.parse(readFileSync(input, "utf8"))) {
  const model = await GPT.create(config, unpackWeights(tensors, await unzip(bytesOfBase64(content))), null);
  results.push(await new FileSource(model, createTokenizer(tokenizer), stored).look(request));
}
writeFileSync(output, JSON.stringify(results));

// Encode and decode the lines of each case of a JSON file; write the ids and texts as JSON.
import { readFileSync, writeFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [, , folder, input, output] = process.argv;
const { createTokenizer } = await import(pathToFileURL(`${folder}/tokenizer.js`).href);
const results = JSON.parse(readFileSync(input, "utf8")).map(({ facts, lines, broken }) => {
  const tokenizer = createTokenizer(facts);
  const ids = lines.map((line) => tokenizer.encode(line));
  return { ids, texts: ids.map((line) => tokenizer.decode(line)), broken: broken.map((line) => tokenizer.decode(line)) };
});
writeFileSync(output, JSON.stringify(results));

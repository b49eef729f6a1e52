// Ask a server as the inspector's page does; write the answers as JSON. Arguments: static folder, address, run, key, and "chats" for a run that chats.
import { pathToFileURL } from "node:url";

const [, , folder, base, run, key, chats] = process.argv;
const { ServerSource } = await import(pathToFileURL(`${folder}/sources.js`).href);
const source = new ServerSource(run, { base, key, chats: chats === "chats" });
const text = async (request) => {
  let written = "", last = null;
  for await (const piece of source.generate(request)) [written, last] = [written + piece.text, piece];
  return { text: written, tokens: last.tokens };
};
const prompt = "Once upon";
const settings = { max_tokens: 12, seed: 3, temperature: 0.9, top_p: 0.9, top_k: null, min_p: null };
const ablations = [{ layer: 0, part: 1 }];
console.log(JSON.stringify({
  look: await source.look({ prompt, step: 0, focus: 1, ablations: [], top: 5, continuation: null }),
  history: await source.history(),
  truth: await source.truth({ prompt, step: null }),
  regrets: await source.regrets(),
  written: await text({ prompt, ablations: [], ...settings }),
  ablated: await text({ prompt, ablations, ...settings }),
  nothing: await new ServerSource("nowhere", { base, key }).truth({ prompt, step: null }),
  error: await source.look({ prompt: "a".repeat(1000) }).catch(({ message, status }) => ({ message, status })),
  refused: await new ServerSource(run, { base, key: "wrong" }).look({ prompt }).catch(({ status }) => status),
}));

// Requests to the server that this page came from: models, presets, streamed answers.

export const TOP = 8; // alternatives of each token that are requested
export const MOST_TOKENS = 32768; // that the server writes in one answer

let key = sessionStorage.getItem("api-key");

// A header cannot hold other characters, and no key of a server has them.
export const isKey = (text) => /^[!-~]*$/.test(text);

export function useKey(text) {
  key = text;
  sessionStorage.setItem("api-key", text);
}

export class KeyNeeded extends Error {}

async function request(path, options = {}) {
  if (key && !isKey(key)) throw new KeyNeeded("the API key cannot be sent");
  const headers = { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(path, { ...options, headers });
  if (response.status === 401) throw new KeyNeeded("the server wants its API key");
  if (!response.ok) {
    const text = await response.text();
    let message = text || `the server answered ${response.status}`;
    try {
      message = JSON.parse(text).error.message;
    } catch {
      // not JSON: the text itself is shown
    }
    throw new Error(message);
  }
  return response;
}

export const models = async () => (await (await request("/v1/models")).json()).data;
export const presets = async () => (await request("/api/presets")).json();

// The data objects of a stream of server-sent events, up to [DONE].
export async function* events(path, body, signal) {
  const response = await request(path, { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the server ended the answer early");
    const blocks = (held + value).split(/\r?\n\r?\n/);
    held = blocks.pop();
    for (const block of blocks) {
      const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

// Stream one answer. messages: [{role, content}]; prefix: text with which the answer must begin; yields {text, tokens, finish,
// leftOut}: tokens as [[text, log-probability, [[text, log-probability], ...]], ...]; leftOut: what the model does not read.
export async function* answer(model, messages, { system, prefix, ...settings }, signal) {
  const common = { model: model.id, stream: true, ...settings };
  const longest = Math.min(model.max_model_len, MOST_TOKENS); // the server's default is 16 tokens for a text
  // An answer may be longer than the context, so it is no news (`cut`) if its beginning is not read when it is continued.
  if (!model.chats) {
    const prompt = messages[messages.length - 1].content + prefix;
    const body = { max_tokens: longest, ...common, prompt, logprobs: TOP, truncation: "auto" };
    for await (const event of events("/v1/completions", body, signal)) {
      const [choice] = event.choices;
      const leftOut = { cut: !prefix && (event.cut_prompt ?? false) };
      if (choice) yield { text: choice.text, tokens: completionTokens(choice.logprobs), finish: choice.finish_reason, leftOut };
    }
    return;
  }
  const all = [...(system ? [{ role: "system", content: system }] : []), ...messages];
  const extra = prefix ? { continue_final_message: true } : {};
  if (prefix) all.push({ role: "assistant", content: prefix });
  const body = { ...common, messages: all, logprobs: true, top_logprobs: TOP, truncation: "auto", ...extra };
  for await (const event of events("/v1/chat/completions", body, signal)) {
    const [choice] = event.choices;
    const leftOut = { dropped: event.dropped_turns ?? 0, withoutSystem: event.dropped_system ?? false, cut: !prefix && (event.cut_message ?? false) };
    if (choice) yield { text: choice.delta.content ?? "", tokens: chatTokens(choice.logprobs), finish: choice.finish_reason, leftOut };
  }
}

const chatTokens = (logprobs) =>
  (logprobs?.content ?? []).map(({ token, logprob, top_logprobs: top }) => [token, logprob, top.map((other) => [other.token, other.logprob])]);

const completionTokens = (logprobs) =>
  (logprobs?.tokens ?? []).map((token, i) => [token, logprobs.token_logprobs[i], Object.entries(logprobs.top_logprobs?.[i] ?? {})]);

// What positron/inspection/look.py computes, with the engine of the page: see LookData in lookdata.py.

const MAX_CHARACTERS = 20_000; // MAX_PROMPT of positron/inspection/routes.py; encoding a much longer prompt takes seconds
const MAX_TOKENS = 512, LENS_TOP = 3, FOCUS_TOP = 50;

/** Give the browser time to draw and to react. */
export const pause = () => new Promise((resolve) => setTimeout(resolve, 0));

/** Return log softmax (V,) in float64. */
export function logSoftmax(logits) {
  let max = -Infinity, sum = 0;
  for (const value of logits) max = Math.max(max, value);
  for (const value of logits) sum += Math.exp(value - max);
  const total = max + Math.log(sum);
  return Float64Array.from(logits, (value) => value - total);
}

/** Return the entropy in bits of log probabilities in nats. */
function entropy(logp) {
  let bits = 0;
  for (const value of logp) bits -= Math.exp(value) * value;
  return Math.max(0, bits / Math.LN2);
}

/** Return the ids of the `count` largest values, the largest first. */
function largest(values, count) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (best.length === count && values[i] <= values[best[count - 1]]) continue;
    let at = best.length;
    while (at > 0 && values[best[at - 1]] < values[i]) at--;
    best.splice(at, 0, i);
    if (best.length > count) best.pop();
  }
  return best;
}

function candidates(logp, count, tokenizer) {
  return largest(logp, count).map((id) => ({ id, ...tokenizer.describe(id), p: Math.exp(logp[id]) }));
}

/** Encode a prompt, or a message if the model `chats`. Throws an error for people if it is too long. */
export function promptIds(model, tokenizer, prompt, chats) {
  const length = [...prompt].length;
  if (length > MAX_CHARACTERS) {
    const [has, most] = [length, MAX_CHARACTERS].map((count) => count.toLocaleString("en-US"));
    throw new Error(`The prompt has ${has} characters and may have at most ${most}: give a shorter prompt.`);
  }
  const ids = tokenizer.prompt(prompt, chats), limit = Math.min(MAX_TOKENS, model.config.context_length);
  if (ids.length > limit) {
    const around = tokenizer.prompt("", chats).length;
    throw new Error(`The prompt has ${ids.length - around} tokens and may have at most ${limit - around}: give a shorter prompt.`);
  }
  return ids;
}

/**
 * Read the prompt and return what LookData has of it, with {logits}: log probabilities (T, V) for other positions.
 *
 * `stopped()` is asked between tokens; if it returns true, the result is null.
 */
export async function look(model, tokenizer, request, stopped = () => false) {
  const { prompt, chats, ablations = [], top = 10 } = request;
  const ids = promptIds(model, tokenizer, prompt, chats), T = ids.length;
  const { n_layer: L, n_head: H } = model.config;
  const layers = new Set(request.attention ?? Array.from({ length: L }, (_, i) => i));
  const streams = Array.from({ length: L + 1 }, () => []);
  const attention = Array.from({ length: L }, (_, i) => (layers.has(i) ? Array.from({ length: H }, () => []) : null));
  const probe = {
    residual: (depth, _, x) => streams[depth].push(x.slice()),
    attention: (layer, head, t, shares, first) => {
      if (attention[layer]) attention[layer][head].push([...new Array(first).fill(0), ...shares]);
    },
  };
  const logps = [];
  let drawn = performance.now();
  const rest = async () => {
    if (performance.now() - drawn < 40) return;
    await pause();
    drawn = performance.now();
  };
  model.reset();
  model.ablate(ablations);
  for (const id of ids) {
    logps.push(logSoftmax(model.step(id, probe)));
    await rest();
    if (stopped()) return null;
  }
  const lens = [];
  for (let depth = 0; depth <= L; depth++) {
    const places = [];
    for (let t = 0; t < T; t++) {
      const logp = depth === L ? logps[t] : logSoftmax(model.predict(streams[depth][t]));
      const p = t + 1 < T ? Math.exp(logp[ids[t + 1]]) : null;
      places.push({ top: candidates(logp, LENS_TOP, tokenizer), p, entropy: entropy(logp) });
      await rest();
      if (stopped()) return null;
    }
    lens.push(places);
  }
  const tokens = ids.map((id, t) => {
    if (t === 0) return { id, ...tokenizer.describe(id), p: null, rank: null, bits: null };
    const logp = logps[t - 1];
    let rank = 1;
    for (const value of logp) if (value > logp[id]) rank++;
    return { id, ...tokenizer.describe(id), p: Math.exp(logp[id]), rank, bits: -logp[id] / Math.LN2 };
  });
  const scored = tokens.slice(1);
  return {
    ids,
    logps,
    bits: scored.length ? scored.reduce((sum, { bits }) => sum + bits, 0) / scored.length : null,
    data: {
      version: 1, prompt, chats, tokens, attention, lens,
      next: logps.map((logp) => ({ top: candidates(logp, top, tokenizer), entropy: entropy(logp) })),
      residual: streams.map((places) =>
        places.map((x) => Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length)),
      ),
    },
  };
}

/** Return the whole distribution of one position, as Focus of lookdata.py. */
export function focusOf(logps, position, tokenizer) {
  const logp = logps[position];
  return {
    position,
    top: candidates(logp, Math.min(FOCUS_TOP, logp.length), tokenizer),
    logits: Array.from(logp).sort((a, b) => b - a),
  };
}

// Sampling of the next token: temperature, top-k, top-p and min-p in this order, as in positron/inference/sampling.py, with
// the random numbers of torch.Generator, so that a seed writes the same text as `positron generate`.

/** Return the ids of the tokens that may follow, {ids, p}: ascending ids and their probabilities. */
export function distribution(logits, { temperature = 0.8, top_k = null, top_p = 0.95, min_p = null } = {}) {
  const V = logits.length;
  let max = -Infinity, best = 0;
  for (let i = 0; i < V; i++) if (logits[i] > max) max = logits[(best = i)];
  if (temperature === 0) return { ids: [best], p: [1] };
  const z = new Float64Array(V); // 0 for the likeliest token
  for (let i = 0; i < V; i++) z[i] = (logits[i] - max) / temperature;
  const least = top_k !== null && top_k < V ? Float64Array.from(z).sort()[V - top_k] : -Infinity;
  let kept = shares(z, (i) => z[i] >= least);
  if (top_p !== null && top_p < 1) {
    const nucleus = keepTopP(kept, top_p, V);
    kept = shares(z, (i) => nucleus.has(i));
  }
  if (min_p !== null && min_p > 0) {
    const limit = Math.log(min_p);
    const before = new Set(kept.ids);
    kept = shares(z, (i) => before.has(i) && z[i] >= limit);
  }
  return kept;
}

/** Return the softmax of z over the ids that are kept. */
function shares(z, isKept) {
  const ids = [], p = [];
  let sum = 0;
  for (let i = 0; i < z.length; i++) {
    if (!isKept(i)) continue;
    const value = Math.exp(z[i]);
    ids.push(i);
    p.push(value);
    sum += value;
  }
  for (let i = 0; i < p.length; i++) p[i] /= sum;
  return { ids, p };
}

/** Return the smallest set of ids whose probabilities sum to at least top_p (arXiv:1904.09751). */
function keepTopP({ ids, p }, top_p, V) {
  // Tokens less likely than (1 - top_p) / V sum to less than 1 - top_p, so the set is among the others.
  const order = [];
  for (let i = 0; i < p.length; i++) if (p[i] >= (1 - top_p) / V) order.push(i);
  order.sort((a, b) => p[b] - p[a] || a - b);
  const kept = new Set();
  let before = 0;
  for (const i of order) {
    if (before >= top_p) break;
    kept.add(ids[i]);
    before += p[i];
  }
  return kept;
}

/** Draw an id by one uniform number and the cumulative sum of the probabilities. */
export function draw({ ids, p }, random) {
  let total = 0;
  for (const value of p) total += value;
  const position = random.uniform() * total;
  let sum = 0;
  for (let i = 0; i < ids.length - 1; i++) {
    sum += p[i];
    if (position < sum) return ids[i];
  }
  return ids[ids.length - 1];
}

/** The Mersenne Twister MT19937 (Matsumoto and Nishimura, 1998), seeded and read as torch.Generator does on the CPU. */
export class Random {
  constructor(seed) {
    this.state = new Uint32Array(624);
    this.state[0] = seed >>> 0;
    for (let i = 1; i < 624; i++) {
      const before = this.state[i - 1] ^ (this.state[i - 1] >>> 30);
      this.state[i] = Math.imul(1812433253, before) + i;
    }
    this.next = 624;
  }

  bits() {
    if (this.next === 624) this.refill();
    let y = this.state[this.next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  refill() {
    const s = this.state;
    for (let i = 0; i < 624; i++) {
      const y = (s[i] & 0x80000000) | (s[(i + 1) % 624] & 0x7fffffff);
      s[i] = s[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
    }
    this.next = 0;
  }

  /** Return a number in [0, 1) with 53 random bits, like torch.rand(dtype=torch.float64). */
  uniform() {
    const high = this.bits() & 0x1fffff, low = this.bits();
    return (high * 2 ** 32 + low) * 2 ** -53;
  }
}

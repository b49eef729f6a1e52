// Sampling of the next token: temperature, top-k, top-p and min-p in this order, as in positron/inference/sampling.py, with
// the random numbers of torch.Generator, so that a seed writes the same text as `positron generate`.

/** Return the indices of the kept tokens and their probabilities, {ids, p}, in the order of the ids. */
export function distribution(logits, { temperature = 0.8, top_k = null, top_p = 0.95, min_p = null } = {}) {
  if (temperature === 0) {
    let best = 0;
    for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
    return { ids: [best], p: [1] };
  }
  let ids = Array.from(logits.keys ? logits.keys() : logits.map((_, i) => i));
  const z = Float64Array.from(logits, (value) => value / temperature);
  if (top_k !== null && top_k < ids.length) {
    const smallest = Float64Array.from(z).sort()[ids.length - top_k];
    ids = ids.filter((i) => z[i] >= smallest);
  }
  if (top_p !== null && top_p < 1) ids = nucleus(ids, softmaxOf(ids, z), top_p, logits.length);
  if (min_p !== null && min_p > 0) {
    const least = ids.reduce((max, i) => Math.max(max, z[i]), -Infinity) + Math.log(min_p);
    ids = ids.filter((i) => z[i] >= least);
  }
  return { ids, p: softmaxOf(ids, z) };
}

function softmaxOf(ids, z) {
  const max = ids.reduce((largest, i) => Math.max(largest, z[i]), -Infinity);
  const p = ids.map((i) => Math.exp(z[i] - max));
  const sum = p.reduce((total, value) => total + value, 0);
  return p.map((value) => value / sum);
}

/** Keep the smallest set of tokens whose probabilities sum to at least top_p (arXiv:1904.09751), in the order of the ids. */
function nucleus(ids, p, top_p, V) {
  // Tokens less likely than (1 - top_p) / V sum to less than 1 - top_p, so the nucleus is among the others.
  const order = ids.map((_, i) => i).filter((i) => p[i] >= (1 - top_p) / V);
  order.sort((a, b) => p[b] - p[a] || a - b);
  const kept = [];
  let before = 0;
  for (const i of order) {
    if (before >= top_p) break;
    kept.push(i);
    before += p[i];
  }
  return kept.sort((a, b) => a - b).map((i) => ids[i]);
}

/** Draw an id by one uniform number and the cumulative sum of the probabilities. */
export function draw({ ids, p }, random) {
  const total = p.reduce((sum, value) => sum + value, 0);
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

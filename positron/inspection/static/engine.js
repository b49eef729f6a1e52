// A GPT in plain JavaScript: every option of positron.config.GPTConfig, one token at a time with a key/value cache.
//
// Shapes as in positron/model/gpt.py: T time (tokens), C = d_model channels, H heads, K key/value heads, D head dimension,
// V vocabulary, L layers. Matrices are stored row by row, padded with zeros to a multiple of 16 columns, in one memory that
// the WebAssembly kernels of engine.wat and the JavaScript kernels below share.

const LANES = 16; // columns that a kernel reads per turn
const INIT_STD = 0.02; // as in gpt.py: the scale of sinusoidal positions

const padded = (n) => Math.ceil(n / LANES) * LANES;

/** Compile engine.wasm; null where the browser has no WebAssembly, or none with SIMD. */
export async function compileKernels(bytes) {
  try {
    return typeof WebAssembly === "object" && WebAssembly.validate(bytes) ? await WebAssembly.compile(bytes) : null;
  } catch {
    return null; // a security policy may forbid it
  }
}

/**
 * Return kernels in JavaScript, on the same memory and with the same arguments. Without WebAssembly all matrices are kept in
 * float32: JavaScript widens a whole number in the loop more slowly than it reads a float.
 */
function plainKernels(buffer) {
  const f32 = new Float32Array(buffer);
  return {
    rows_f32(out, w, x, rows, stride) {
      const first = x >> 2, end = first + stride;
      let o = out >> 2, p = w >> 2, r = 0;
      for (; r + 4 <= rows; r += 4, o += 4, p += 3 * stride) {
        let a = 0, b = 0, c = 0, d = 0; // four rows at a time read x once, and no sum waits for another
        for (let q = first; q < end; q++, p++) {
          const value = f32[q];
          a += f32[p] * value;
          b += f32[p + stride] * value;
          c += f32[p + 2 * stride] * value;
          d += f32[p + 3 * stride] * value;
        }
        f32[o] = a;
        f32[o + 1] = b;
        f32[o + 2] = c;
        f32[o + 3] = d;
      }
      for (; r < rows; r++, o++) {
        let a = 0, b = 0, c = 0, d = 0;
        for (let q = first; q < end; q += 4, p += 4) {
          a += f32[p] * f32[q];
          b += f32[p + 1] * f32[q + 1];
          c += f32[p + 2] * f32[q + 2];
          d += f32[p + 3] * f32[q + 3];
        }
        f32[o] = a + b + (c + d);
      }
    },
    mix_f32(out, w, share, rows, stride) {
      const o = out >> 2;
      f32.fill(0, o, o + stride);
      for (let r = 0, s = share >> 2, p = w >> 2; r < rows; r++, s++) {
        for (let i = 0; i < stride; i++, p++) f32[o + i] += f32[s] * f32[p];
      }
    },
  };
}

/** Widen IEEE half precision: Uint16Array -> Float32Array. */
export function widenHalf(halves) {
  const bits = new Uint32Array(1 << 16);
  const table = new Float32Array(bits.buffer);
  for (let h = 0; h < 1 << 16; h++) {
    const sign = h >> 15 ? -1 : 1, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent === 31) table[h] = fraction ? NaN : sign * Infinity;
    else if (exponent) table[h] = sign * 2 ** (exponent - 15) * (1 + fraction / 1024);
    else table[h] = sign * 2 ** -14 * (fraction / 1024);
  }
  return Float32Array.from(halves, (h) => table[h]);
}

/** Hand out places in a memory that is created when all sizes are known. */
class Arena {
  constructor() {
    this.bytes = 0;
  }

  take(bytes) {
    const at = this.bytes;
    this.bytes += Math.ceil(bytes / 64) * 64;
    return at;
  }
}

/** The values of these options of a model that the engine computes. */
const CHOICES = {
  norm: ["layernorm", "rmsnorm"],
  position: ["learned", "sinusoidal", "rope"],
  activation: ["gelu", "relu", "swish", "relu2", "swiglu"],
};

/**
 * A model with the weights `tensors`: name (as in gpt.py) -> {rows, cols, values, scale}.
 *
 * `values` is a Float32Array, a Uint16Array (half precision), or an Int8Array or Int16Array whose row r stands for
 * scale[r] * values[r]. Vectors have one row.
 */
export class GPT {
  /** Create a model. `kernels`: the result of compileKernels, or null for plain JavaScript. */
  static async create(config, tensors, kernels) {
    const model = new GPT(config, tensors, kernels);
    await model.load(kernels);
    return model;
  }

  constructor(config, tensors, kernels) {
    for (const [option, values] of Object.entries(CHOICES)) {
      if (!values.includes(config[option])) {
        throw new Error(`model.${option}=${config[option]}: this page computes only ${values.join(", ")}`);
      }
    }
    this.config = config;
    this.usesWasm = kernels !== null;
    this.tensors = tensors;
    const { n_layer: L, n_head: H, n_kv_head: K, head_dim: D, d_model: C, d_ff: F, vocab_size: V } = config;
    const T = config.context_length;
    this.arena = new Arena();
    this.places = new Map();
    for (const [name, tensor] of Object.entries(tensors)) this.places.set(name, this.reserve(tensor));
    this.rowD = padded(D);
    const floats = (n) => this.arena.take(padded(n) * 4);
    this.at = {
      x: floats(C), h: floats(C), q: floats(H * D), k: floats(K * D), v: floats(K * D), y: floats(H * D), branch: floats(C),
      up: floats(F), gate: floats(F), logits: floats(V), query: floats(this.rowD), scores: floats(T), mixed: floats(this.rowD),
      keys: floats(L * K * T * this.rowD), values: floats(L * K * T * this.rowD),
    };
    this.ids = [];
    this.ablate([]);
  }

  reserve({ rows, cols, values, scale }) {
    const stride = padded(cols);
    const stored = values instanceof Int8Array ? "i8" : values instanceof Int16Array ? "i16" : "f32";
    const kind = this.usesWasm ? stored : "f32";
    const width = kind === "i8" ? 1 : kind === "i16" ? 2 : 4;
    return {
      kind, rows, cols, stride,
      at: this.arena.take(rows * stride * width),
      scaleAt: kind !== "f32" ? this.arena.take(rows * 4) : 0,
    };
  }

  async load(kernels) {
    if (kernels) {
      const pages = Math.ceil(this.arena.bytes / 65536) + 1;
      const memory = new WebAssembly.Memory({ initial: pages });
      this.buffer = memory.buffer;
      this.kernels = (await WebAssembly.instantiate(kernels, { env: { memory } })).exports;
    } else {
      this.buffer = new ArrayBuffer(this.arena.bytes + 65536);
      this.kernels = plainKernels(this.buffer);
    }
    for (const [name, place] of this.places) {
      const { values, scale } = this.tensors[name];
      const { kind, rows, cols, stride, at, scaleAt } = place;
      const Kind = { f32: Float32Array, i8: Int8Array, i16: Int16Array }[kind];
      const source = values instanceof Uint16Array ? widenHalf(values) : values;
      place.all = new Kind(this.buffer, at, rows * stride);
      for (let r = 0; r < rows; r++) {
        const row = place.all.subarray(r * stride, r * stride + cols);
        row.set(source.subarray(r * cols, (r + 1) * cols));
        if (scale && kind === "f32") for (let i = 0; i < cols; i++) row[i] *= scale[r];
      }
      if (scale && kind !== "f32") {
        place.scales = new Float32Array(this.buffer, scaleAt, rows);
        place.scales.set(scale);
      }
    }
    this.tensors = null; // copied
    const { head_dim: D, d_model: C, n_head: H, n_kv_head: K, d_ff: F, vocab_size: V, context_length: T } = this.config;
    const view = (name, n) => new Float32Array(this.buffer, this.at[name], n);
    this.x = view("x", C);
    this.h = view("h", C);
    this.q = view("q", H * D);
    this.k = view("k", K * D);
    this.v = view("v", K * D);
    this.y = view("y", H * D);
    this.branch = view("branch", C);
    this.up = view("up", F);
    this.gate = view("gate", F);
    this.logits = view("logits", V);
    this.query = view("query", D);
    this.scores = view("scores", T);
    this.mixed = view("mixed", D);
    this.cachedKeys = view("keys", this.config.n_layer * K * T * this.rowD);
    this.cachedValues = view("values", this.config.n_layer * K * T * this.rowD);
    this.layers = Array.from({ length: this.config.n_layer }, (_, i) => this.layer(`blocks.${i}.`));
    this.embedding = this.places.get("wte.weight");
    this.head = this.places.get(this.config.tie_embeddings ? "wte.weight" : "lm_head.weight");
    this.finalNorm = this.norm("norm_f");
    this.smear = this.config.smear ? this.vector("smear") : null;
    this.positions = this.positionTable();
    this.turn = this.config.position === "rope" ? this.ropeTables() : null;
  }

  vector(name) {
    const place = this.places.get(name);
    return place ? place.all.subarray(0, place.cols) : null;
  }

  norm(name) {
    return { weight: this.vector(name + ".weight"), bias: this.vector(name + ".bias") };
  }

  linear(name) {
    return { matrix: this.places.get(name + ".weight"), bias: this.vector(name + ".bias") };
  }

  layer(prefix) {
    const gated = this.config.activation === "swiglu";
    return {
      norm1: this.norm(prefix + "norm1"),
      norm2: this.norm(prefix + "norm2"),
      q: this.linear(prefix + "attn.q"),
      k: this.linear(prefix + "attn.k"),
      v: this.linear(prefix + "attn.v"),
      out: this.linear(prefix + "attn.out"),
      qScale: this.vector(prefix + "attn.q_norm.weight"),
      kScale: this.vector(prefix + "attn.k_norm.weight"),
      up: this.linear(prefix + "mlp.up"),
      gate: gated ? this.linear(prefix + "mlp.gate") : null,
      down: this.linear(prefix + "mlp.down"),
    };
  }

  /** Return what is added to the embedding at a position: a function (position, channel) -> number, or null. */
  positionTable() {
    const { position, d_model: C, context_length: T } = this.config;
    if (position === "learned") {
      const table = this.places.get("wpe.weight");
      const row = new Float32Array(C);
      return (t) => (this.rowOf(table, t, row), row);
    }
    if (position !== "sinusoidal") return null;
    const table = new Float32Array(T * C);
    for (let t = 0; t < T; t++) {
      for (let i = 0; i < C / 2; i++) {
        const angle = t * 10000 ** ((-2 * i) / C);
        table[t * C + i] = Math.sin(angle) * INIT_STD * Math.SQRT2;
        table[t * C + C / 2 + i] = Math.cos(angle) * INIT_STD * Math.SQRT2;
      }
    }
    return (t) => table.subarray(t * C, (t + 1) * C);
  }

  /** Compute cos and sin of position * base^(-2i/D), (T, D/2) each. */
  ropeTables() {
    const { head_dim: D, context_length: T, rope_base: base } = this.config;
    const cos = new Float32Array((T * D) / 2), sin = new Float32Array((T * D) / 2);
    for (let t = 0; t < T; t++) {
      for (let i = 0; i < D / 2; i++) {
        const angle = t * base ** ((-2 * i) / D);
        cos[(t * D) / 2 + i] = Math.cos(angle);
        sin[(t * D) / 2 + i] = Math.sin(angle);
      }
    }
    return { cos, sin };
  }

  /** Forget all tokens. */
  reset() {
    this.ids = [];
  }

  /** Replace parts of the model by zeros from now on: a list of {layer, part}, part a head, "attn" or "mlp". */
  ablate(ablations) {
    const { n_layer: L, n_head: H } = this.config;
    this.without = { heads: new Uint8Array(L * H), attn: new Uint8Array(L), mlp: new Uint8Array(L) };
    for (const { layer, part } of ablations) {
      if (part === "attn" || part === "mlp") this.without[part][layer] = 1;
      else this.without.heads[layer * H + part] = 1;
    }
  }

  /** out = matrix x + bias; `out` and `x` are names of activations. */
  multiply(linear, out, x) {
    const { kind, at, scaleAt, rows, stride } = linear.matrix;
    if (kind === "f32") this.kernels.rows_f32(this.at[out], at, this.at[x], rows, stride);
    else this.kernels["rows_" + kind](this.at[out], at, scaleAt, this.at[x], rows, stride);
    if (linear.bias) {
      const result = this[out];
      for (let i = 0; i < rows; i++) result[i] += linear.bias[i];
    }
  }

  /** Copy row `r` of a stored matrix into `target`. */
  rowOf({ all, scales, stride, cols }, r, target) {
    const s = scales ? scales[r] : 1;
    for (let i = 0; i < cols; i++) target[i] = all[r * stride + i] * s;
  }

  /** Normalise x (C,) into this.h. */
  normalise(x, { weight, bias }) {
    const C = x.length, { h } = this;
    let mean = 0;
    if (this.config.norm === "layernorm") {
      for (let i = 0; i < C; i++) mean += x[i];
      mean /= C;
    }
    let square = 0;
    for (let i = 0; i < C; i++) square += (x[i] - mean) ** 2;
    const scale = 1 / Math.sqrt(square / C + this.config.norm_eps);
    for (let i = 0; i < C; i++) h[i] = (x[i] - mean) * scale * weight[i] + (bias ? bias[i] : 0);
  }

  /** Give one head, x[start .. start + D], unit root mean square, and multiply by `weight` unless it is null. */
  normaliseHead(x, start, weight) {
    const D = this.config.head_dim;
    let square = 0;
    for (let i = start; i < start + D; i++) square += x[i] * x[i];
    const scale = 1 / Math.sqrt(square / D + this.config.norm_eps);
    for (let i = 0; i < D; i++) x[start + i] *= scale * (weight ? weight[i] : 1);
  }

  /** Rotate the pairs (x[i], x[i + D/2]) of one head by the angles of `position`. */
  rotate(x, start, position) {
    const half = this.config.head_dim / 2, { cos, sin } = this.turn;
    for (let i = 0; i < half; i++) {
      const c = cos[position * half + i], s = sin[position * half + i];
      const a = x[start + i], b = x[start + half + i];
      x[start + i] = a * c - b * s;
      x[start + half + i] = a * s + b * c;
    }
  }

  /** Scale and rotate all heads of q or k. */
  prepareHeads(x, heads, weight, position) {
    const { head_dim: D, qk_norm, qk_scale } = this.config;
    for (let start = 0; start < heads * D; start += D) {
      if (qk_scale) this.normaliseHead(x, start, weight); // before the rotation, which mixes numbers of different scales
      if (this.turn) this.rotate(x, start, position);
      if (qk_norm && !qk_scale) this.normaliseHead(x, start, null);
    }
  }

  attend(i, position, probe) {
    const { n_head: H, n_kv_head: K, head_dim: D, context_length: T, window } = this.config;
    const layer = this.layers[i], row = this.rowD;
    this.normalise(this.x, layer.norm1);
    this.multiply(layer.q, "q", "h");
    this.multiply(layer.k, "k", "h");
    this.multiply(layer.v, "v", "h");
    this.prepareHeads(this.q, H, layer.qScale, position);
    this.prepareHeads(this.k, K, layer.kScale, position);
    for (let head = 0; head < K; head++) {
      const start = ((i * K + head) * T + position) * row;
      this.cachedKeys.set(this.k.subarray(head * D, (head + 1) * D), start);
      this.cachedValues.set(this.v.subarray(head * D, (head + 1) * D), start);
    }
    const first = window ? Math.max(0, position + 1 - window) : 0, n = position + 1 - first;
    const scale = 1 / Math.sqrt(D);
    for (let head = 0; head < H; head++) {
      const cache = ((i * K + Math.floor((head * K) / H)) * T + first) * row * 4;
      for (let c = 0; c < D; c++) this.query[c] = this.q[head * D + c] * scale;
      this.kernels.rows_f32(this.at.scores, this.at.keys + cache, this.at.query, n, row);
      softmax(this.scores, n);
      probe?.attention?.(i, head, position, this.scores.subarray(0, n), first);
      if (this.without.heads[i * H + head]) {
        this.y.fill(0, head * D, (head + 1) * D);
        continue;
      }
      this.kernels.mix_f32(this.at.mixed, this.at.values + cache, this.at.scores, n, row);
      this.y.set(this.mixed, head * D);
    }
    if (this.without.attn[i]) return;
    this.multiply(layer.out, "branch", "y");
    for (let c = 0; c < this.x.length; c++) this.x[c] += this.branch[c];
  }

  think(i) {
    if (this.without.mlp[i]) return;
    const layer = this.layers[i], { up, gate } = this;
    this.normalise(this.x, layer.norm2);
    this.multiply(layer.up, "up", "h");
    if (layer.gate) {
      this.multiply(layer.gate, "gate", "h");
      for (let f = 0; f < up.length; f++) up[f] *= gate[f] / (1 + Math.exp(-gate[f]));
    } else {
      activate(up, this.config.activation);
    }
    this.multiply(layer.down, "branch", "up");
    for (let c = 0; c < this.x.length; c++) this.x[c] += this.branch[c];
  }

  /** Compute the logits (V,) of a residual stream (C,); the same array at every call. */
  predict(x) {
    this.normalise(x, this.finalNorm);
    this.multiply({ matrix: this.head, bias: null }, "logits", "h");
    return this.logits;
  }

  /**
   * Read one token and return the logits after it (V,), the same array at every call.
   *
   * `probe` may have the functions attention(layer, head, position, shares, first) and residual(depth, position, x), which
   * are called with arrays that the next step overwrites. `needed` false leaves the logits out, which the tokens of a prompt
   * do not need. Throws RangeError when the context is full.
   */
  step(id, probe = null, needed = true) {
    const position = this.ids.length;
    if (position >= this.config.context_length) throw new RangeError(`the context of ${position} tokens is full`);
    this.rowOf(this.embedding, id, this.x);
    if (this.smear && position) {
      this.rowOf(this.embedding, this.ids[position - 1], this.branch);
      for (let c = 0; c < this.x.length; c++) this.x[c] += this.smear[c] * this.branch[c];
    }
    if (this.positions) {
      const row = this.positions(position);
      for (let c = 0; c < this.x.length; c++) this.x[c] += row[c];
    }
    this.ids.push(id);
    probe?.residual?.(0, position, this.x);
    for (let i = 0; i < this.layers.length; i++) {
      this.attend(i, position, probe);
      this.think(i);
      probe?.residual?.(i + 1, position, this.x);
    }
    return needed ? this.predict(this.x) : null;
  }

  /** Read several tokens and return the logits after the last one. */
  read(ids) {
    let logits = null;
    ids.forEach((id, i) => (logits = this.step(id, null, i === ids.length - 1)));
    return logits;
  }

  /** Read the next token of a text; if the context is full, first read the last half of the text again, as generate does. */
  continue(id) {
    const T = this.config.context_length;
    if (this.ids.length < T) return this.step(id);
    const kept = [...this.ids, id].slice(-Math.max(1, Math.floor(T / 2)));
    this.reset();
    return this.read(kept);
  }
}

/** Replace the first n numbers by their softmax. */
function softmax(x, n) {
  let max = -Infinity, sum = 0;
  for (let i = 0; i < n; i++) max = Math.max(max, x[i]);
  for (let i = 0; i < n; i++) sum += x[i] = Math.exp(x[i] - max);
  for (let i = 0; i < n; i++) x[i] /= sum;
}

/** Apply an activation of one argument to every number. */
function activate(x, kind) {
  switch (kind) {
    case "gelu": // the tanh form, arXiv:1606.08415
      for (let i = 0; i < x.length; i++) {
        const h = x[i];
        x[i] = 0.5 * h * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (h + 0.044715 * h * h * h)));
      }
      break;
    case "relu":
      for (let i = 0; i < x.length; i++) x[i] = Math.max(0, x[i]);
      break;
    case "swish":
      for (let i = 0; i < x.length; i++) x[i] /= 1 + Math.exp(-x[i]);
      break;
    case "relu2":
      for (let i = 0; i < x.length; i++) x[i] = x[i] > 0 ? x[i] * x[i] : 0;
      break;
    default:
      throw new Error(`unknown activation ${kind}`);
  }
}

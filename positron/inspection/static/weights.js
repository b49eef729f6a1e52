// Unpack the weights that positron/inspection/packed_weights.py packed.

/** Decode base64. */
export function bytesOfBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text), bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

// Printable characters that mean nothing in HTML; html_file.py has the same.
const DIGITS = "!#$%()*+,-./0123456789:;=?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]^_abcdefghijklmnopqrstuvwxyz{|";

/** Decode base 85: five digits for each four bytes, high ones first; the first number is the count of bytes. */
export function bytesOfBase85(text) {
  const value = new Uint8Array(128);
  for (let i = 0; i < 85; i++) value[DIGITS.charCodeAt(i)] = i;
  const words = new DataView(new ArrayBuffer((4 * text.length) / 5));
  for (let at = 0, byte = 0; at < text.length; at += 5, byte += 4) {
    let word = 0;
    for (let i = at; i < at + 5; i++) word = word * 85 + value[text.charCodeAt(i)];
    words.setUint32(byte, word);
  }
  return new Uint8Array(words.buffer, 4, words.getUint32(0));
}

/** Decompress gzip. */
export async function unzip(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Return name -> {rows, cols, values, scale} from the list of tensors and their decompressed content. */
export function unpackWeights(tensors, content) {
  let at = 0;
  const take = (bytes) => content.slice(at, (at += bytes)); // a copy begins at a multiple of 8, as typed arrays need it
  const planes = (n) => {
    const low = take(n), high = take(n), pairs = new Uint8Array(2 * n);
    for (let i = 0; i < n; i++) {
      pairs[2 * i] = low[i];
      pairs[2 * i + 1] = high[i];
    }
    return pairs.buffer;
  };
  const unpacked = {};
  for (const { name, rows, cols, kind } of tensors) {
    const n = rows * cols;
    const scale = kind === "i8" || kind === "i16" ? new Float32Array(take(4 * rows).buffer) : undefined;
    let values;
    if (kind === "f32") values = new Float32Array(take(4 * n).buffer);
    else if (kind === "f16") values = new Uint16Array(planes(n));
    else if (kind === "i16") values = new Int16Array(planes(n));
    else values = new Int8Array(take(n).buffer);
    unpacked[name] = { rows, cols, values, scale };
  }
  return unpacked;
}

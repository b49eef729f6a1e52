// Text to token ids and back, for the tokenizers that positron/inspection/page_tokenizer.py describes.
//
// No text becomes a special token: a typed `<|end|>` is seven characters. Code that needs a special token inserts its id.

export const END_OF_TEXT = "<|endoftext|>";
const UNKNOWN = "\uFFFD";
const SPACE = "\u2581"; // how SentencePiece writes a space
const utf8 = new TextEncoder();

// What Python's str.isspace accepts, which is not JavaScript's \s.
const PYTHON_SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORDS = new RegExp(
  `[\\p{L}\\p{N}_]+|[^\\p{L}\\p{N}_${PYTHON_SPACE}]|[${PYTHON_SPACE}]+`, "gu",
);

// The patterns that cut a text into words before the merges. \p{White_Space} is \s of the engines that they come from, and
// \u017f is the one further letter that equals s when case is ignored.
const S = "\\p{White_Space}";
const APOSTROPHE = "'(?:[sdmtSDMT\\u017f]|[lL]{2}|[vV][eE]|[rR][eE])";
const OPTIONAL_APOSTROPHE = `(?:${APOSTROPHE})?`;
const PATTERNS = {
  r50k: `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${S}\\p{L}\\p{N}]+|${S}+$|${S}+(?!\\P{White_Space})|${S}`,
  gpt2: `'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^${S}\\p{L}\\p{N}]+|${S}+(?!\\P{White_Space})|${S}+`,
  cl100k:
    `${APOSTROPHE}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^${S}\\p{L}\\p{N}]+[\\r\\n]*` +
    `|${S}+$|${S}*[\\r\\n]|${S}+(?!\\P{White_Space})|${S}`,
  o200k:
    `[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+${OPTIONAL_APOSTROPHE}` +
    `|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*${OPTIONAL_APOSTROPHE}` +
    `|\\p{N}{1,3}| ?[^${S}\\p{L}\\p{N}]+[\\r\\n/]*|${S}*[\\r\\n]+|${S}+(?!\\P{White_Space})|${S}+`,
  llama3:
    `${APOSTROPHE}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^${S}\\p{L}\\p{N}]+[\\r\\n]*` +
    `|${S}*[\\r\\n]+|${S}+(?!\\P{White_Space})|${S}+`,
  qwen2:
    `${APOSTROPHE}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^${S}\\p{L}\\p{N}]+[\\r\\n]*` +
    `|${S}*[\\r\\n]+|${S}+(?!\\P{White_Space})|${S}+`,
};

/** GPT-2's printable character for each byte, in which byte-level vocabularies spell their tokens. */
const BYTE_CHARACTERS = (() => {
  const isPrintable = (b) => (b >= 0x21 && b < 0x7f) || (b >= 0xa1 && b < 0xad) || b >= 0xae;
  let other = 0x100;
  return Array.from({ length: 256 }, (_, b) => String.fromCharCode(isPrintable(b) ? b : other++));
})();
const BYTE_OF = new Map(BYTE_CHARACTERS.map((character, b) => [character, b]));

const byteLevel = (text) => Array.from(utf8.encode(text), (b) => BYTE_CHARACTERS[b]);
const bytesOfSpelled = (token) => Uint8Array.from(token, (character) => BYTE_OF.get(character));

/** Create the tokenizer that `facts` describes. */
export function createTokenizer(facts) {
  const kinds = {
    char: CharTokenizer, word: WordTokenizer, sentencepiece: PieceTokenizer, tiktoken: ByteTokenizer, huggingface: LibraryTokenizer,
  };
  const Kind = kinds[facts.kind];
  if (!Kind) throw new Error(`unknown tokenizer ${facts.kind}`);
  return new Kind(facts);
}

class Tokenizer {
  constructor({ specials, vocab_size }) {
    this.specials = specials; // name -> id
    this.vocabSize = vocab_size;
    this.names = new Map(Object.entries(specials).map(([name, id]) => [id, name]));
    this.putsSpaceFirst = false;
  }

  /** Return the id of a special token. */
  special(name) {
    return this.specials[name];
  }

  /** Encode a text as the beginning of a document, or a message up to where its answer begins (positron/text/conversation.py). */
  prompt(text, chats) {
    const begin = this.special(END_OF_TEXT), ids = this.encode(text);
    return chats ? [begin, this.special("<|user|>"), ...ids, this.special("<|end|>"), this.special("<|assistant|>")] : [begin, ...ids];
  }

  /** Return {text, special} for a token: its name if it is special; U+FFFD stands for a part of a character. */
  describe(id) {
    const name = this.names.get(id);
    if (name !== undefined) return { text: name, special: true };
    return { text: new TextDecoder("utf-8", { ignoreBOM: true }).decode(this.bytesOf(id)), special: false };
  }

  /** Decode ids; special tokens have no text. */
  decode(ids) {
    const stream = new Stream(this);
    return ids.map((id) => stream.push(id)).join("") + stream.end();
  }
}

/**
 * Decode a stream of ids to whole characters: bytes are held back until their character is complete.
 *
 * If the ids `before` the stream are empty or end with a special token, a text begins with the stream. Then the space that some
 * tokenizers put before a text is left out.
 */
export class Stream {
  constructor(tokenizer, before = []) {
    this.tokenizer = tokenizer;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.skipsSpace = tokenizer.putsSpaceFirst && !(before.length && tokenizer.bytesOf(before.at(-1)).length);
  }

  push(id) {
    const text = this.decoder.decode(this.tokenizer.bytesOf(id), { stream: true });
    if (!this.skipsSpace || !text) return text;
    this.skipsSpace = false;
    return text.startsWith(" ") ? text.slice(1) : text;
  }

  end() {
    return this.decoder.decode();
  }
}

/** An id per character, 0 for others. */
class CharTokenizer extends Tokenizer {
  constructor(facts) {
    super(facts);
    this.first = facts.first;
    this.tokens = Array.from(facts.characters);
    this.ids = new Map(this.tokens.map((token, i) => [token, facts.first + i]));
  }

  encode(text) {
    return Array.from(text, (character) => this.ids.get(character) ?? 0);
  }

  bytesOf(id) {
    if (id === 0) return utf8.encode(UNKNOWN);
    return utf8.encode(this.tokens[id - this.first] ?? "");
  }
}

/** An id per word, punctuation mark or run of white space, 0 for others. */
class WordTokenizer extends CharTokenizer {
  constructor(facts) {
    super({ ...facts, characters: facts.pieces });
  }

  encode(text) {
    return (text.toWellFormed?.() ?? text).match(WORDS)?.map((piece) => this.ids.get(piece) ?? 0) ?? [];
  }
}

/**
 * Merge neighbours, best rank first and leftmost first among equals, until no pair has a rank; return the parts.
 *
 * `rankOf(left, right)` returns a number, lower for an earlier merge, or undefined.
 */
function merge(parts, rankOf) {
  parts = [...parts];
  const rank = (i) => rankOf(parts[i], parts[i + 1]) ?? Infinity;
  const ranks = parts.slice(1).map((_, i) => rank(i)); // of the pair (i, i + 1)
  while (ranks.length) {
    let best = 0;
    for (let i = 1; i < ranks.length; i++) if (ranks[i] < ranks[best]) best = i;
    if (ranks[best] === Infinity) break;
    parts.splice(best, 2, parts[best] + parts[best + 1]);
    ranks.splice(best, 1);
    if (best > 0) ranks[best - 1] = rank(best - 1);
    if (best < ranks.length) ranks[best] = rank(best);
  }
  return parts;
}

/** SentencePiece's byte-pair encoding: characters are merged, and unknown ones become their bytes. */
class PieceTokenizer extends Tokenizer {
  constructor(facts) {
    super(facts);
    this.pieces = facts.pieces;
    this.kinds = facts.kinds; // per id a letter: n normal, b byte, c control, u unknown
    this.ids = new Map();
    this.ranks = new Map();
    this.byteIds = new Map();
    facts.pieces.forEach((piece, id) => {
      if (this.kinds[id] === "n") {
        this.ids.set(piece, id);
        this.ranks.set(piece, facts.ranks[id]);
      }
      if (this.kinds[id] === "b") this.byteIds.set(parseInt(piece.slice(3, 5), 16), id);
    });
  }

  encode(text) {
    const ids = [];
    text.split(SPACE).forEach((part, i) => {
      if (i) ids.push(...this.bytes(SPACE)); // the character itself, which would be decoded to a space
      ids.push(...this.encodePart(part));
    });
    return ids;
  }

  encodePart(text) {
    const parts = merge(text.replaceAll(" ", SPACE), (left, right) => this.ranks.get(left + right));
    return parts.flatMap((part) => (this.ids.has(part) ? [this.ids.get(part)] : this.bytes(part)));
  }

  bytes(text) {
    return Array.from(utf8.encode(text), (b) => this.byteIds.get(b));
  }

  bytesOf(id) {
    if (this.kinds[id] === "b") return Uint8Array.of(parseInt(this.pieces[id].slice(3, 5), 16));
    return utf8.encode(this.kinds[id] === "n" ? this.pieces[id].replaceAll(SPACE, " ") : "");
  }
}

/** Byte-level byte-pair encoding of tiktoken: words by a pattern, then merges of the lowest id first. */
class ByteTokenizer extends Tokenizer {
  constructor(facts) {
    super(facts);
    this.tokens = facts.tokens; // spelled in BYTE_CHARACTERS; null without bytes
    this.ids = new Map(facts.tokens.flatMap((token, id) => (token === null ? [] : [[token, id]])));
    this.pattern = new RegExp(PATTERNS[facts.pattern], "gu");
  }

  encode(text) {
    const words = (text.toWellFormed?.() ?? text).match(this.pattern) ?? [];
    return words.flatMap((word) => {
      const spelled = byteLevel(word), whole = this.ids.get(spelled.join(""));
      if (whole !== undefined) return [whole];
      return merge(spelled, (left, right) => this.ids.get(left + right)).map((part) => this.ids.get(part));
    });
  }

  bytesOf(id) {
    const token = this.tokens[id];
    return token === null || token === undefined ? new Uint8Array(0) : bytesOfSpelled(token);
  }
}

/** An imported tokenizer.json with byte-pair encoding. */
class LibraryTokenizer extends Tokenizer {
  constructor(facts) {
    super(facts);
    this.facts = facts;
    this.putsSpaceFirst = facts.prefix !== null;
    this.silent = new Set([...facts.silent, ...Object.values(facts.specials)]);
    this.ids = new Map(facts.tokens.flatMap((token, id) => (token === null ? [] : [[token, id]])));
    this.ranks = new Map(facts.merges.map(([left, right], rank) => [left + "\n" + right, rank]));
  }

  encode(text) {
    const { nfc, prefix, spaces, digits, pattern, spelling } = this.facts;
    text = text.toWellFormed?.() ?? text;
    if (nfc) text = text.normalize("NFC");
    if (!text) return [];
    if (prefix && !(prefix === "unless space" && text.startsWith(" "))) text = " " + text;
    if (spaces) text = text.replaceAll(" ", SPACE);
    let words = [text];
    if (digits) words = words.flatMap((word) => word.match(/\p{N}|[^\p{N}]+/gu) ?? []);
    if (pattern) words = words.flatMap((word) => word.match(new RegExp(PATTERNS[pattern], "gu")) ?? []);
    const ids = words.flatMap((word) => this.encodeWord(spelling === "bytes" ? byteLevel(word) : Array.from(word)));
    return this.facts.fuse ? ids.filter((id, i) => id !== this.facts.unknown || ids[i - 1] !== id) : ids;
  }

  encodeWord(characters) {
    const { whole_words, byte_fallback, unknown } = this.facts;
    const word = characters.join("");
    if (whole_words && this.ids.has(word)) return [this.ids.get(word)];
    return merge(characters, (left, right) => this.ranks.get(left + "\n" + right)).flatMap((part) => {
      if (this.ids.has(part)) return [this.ids.get(part)];
      if (byte_fallback) {
        const names = Array.from(utf8.encode(part), (b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`);
        if (names.every((name) => this.ids.has(name))) return names.map((name) => this.ids.get(name));
      }
      return unknown === null ? [] : [unknown];
    });
  }

  bytesOf(id) {
    const token = this.facts.tokens[id];
    if (id === this.facts.unknown && !this.names.has(id)) return utf8.encode(UNKNOWN);
    if (token === null || token === undefined || this.silent.has(id)) return new Uint8Array(0);
    if (this.facts.spelling === "bytes") {
      return Array.from(token).every((character) => BYTE_OF.has(character)) ? bytesOfSpelled(token) : utf8.encode(token);
    }
    const byte = /^<0x([0-9A-F]{2})>$/.exec(token);
    if (this.facts.spelling === "pieces" && byte) return Uint8Array.of(parseInt(byte[1], 16));
    return utf8.encode(this.facts.spelling === "pieces" ? token.replaceAll(SPACE, " ") : token);
  }
}

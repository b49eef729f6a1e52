// The file of an exported conversation: how it is written, and what a file must hold to be imported.

import { NUMBERS } from "./settings.js";
import { newId } from "./store.js";

const VERSION = 1;
const MOST_BYTES = 32 * 2 ** 20;

export const written = (conversation) => JSON.stringify({ version: VERSION, conversation }, null, 2);

// Read the conversation of a file that anybody may have written, under a new id; an error says what is wrong.
export async function read(file) {
  if (file.size > MOST_BYTES) throw new Error(`it has ${file.size} bytes and may have at most ${MOST_BYTES}`);
  let content;
  try {
    content = JSON.parse(await file.text());
  } catch (error) {
    throw error instanceof SyntaxError ? new Error("it is not JSON") : error;
  }
  if (content?.version !== VERSION) throw new Error("it is not a conversation that this page has exported");
  const conversation = asConversation(content.conversation, "conversation");
  if (!conversation.turns.length) throw new Error("its conversation is empty");
  return { id: newId(), ...conversation };
}

// A check takes a value and its place in the file, and returns a copy with the known fields only.

function wrong(place, wanted) {
  throw new Error(`${place} must be ${wanted}`);
}

const check = (wanted, test) => (value, place) => (test(value) ? value : wrong(place, wanted));
const text = check("a text", (value) => typeof value === "string");
const isBetween = (least, most) => (value) => Number.isFinite(value) && value >= least && value <= most;
const flag = check("true or false", (value) => typeof value === "boolean");
const amount = check("a number of 0 or more", isBetween(0, Infinity));
const logprob = check("a number of at most 0", isBetween(-Infinity, 0));

const isPlain = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const orNull = (part) => (value, place) => (value === null ? null : part(value, place));
const orNothing = (part) => (value, place) => (value === undefined ? undefined : part(value, place));
const listOf = (part) => (value, place) => (Array.isArray(value) ? value.map((one, i) => part(one, `${place}[${i}]`)) : wrong(place, "a list"));
const tuple = (...parts) => (value, place) =>
  Array.isArray(value) && value.length === parts.length ? parts.map((part, i) => part(value[i], `${place}[${i}]`)) : wrong(place, `a list of ${parts.length}`);
const mapOf = (part) => (value, place) =>
  isPlain(value) ? Object.fromEntries(Object.entries(value).map(([key, one]) => [key, part(one, `${place}.${key}`)])) : wrong(place, "an object");
const object = (parts) => (value, place) =>
  isPlain(value) ? Object.fromEntries(Object.entries(parts).map(([key, part]) => [key, part(value[key], `${place}.${key}`)])) : wrong(place, "an object");

function setting({ min, max, step, optional }) {
  const isWhole = step === 1;
  const wanted = `${isWhole ? "a whole number" : "a number"} from ${min} to ${max}`;
  const number = check(wanted, (value) => isBetween(min, max)(value) && (!isWhole || Number.isInteger(value)));
  return optional ? orNull(number) : number;
}

const variant = object({
  text,
  prefix: text,
  tokens: listOf(tuple(text, logprob, listOf(tuple(text, logprob)))),
  continues: flag,
  finish: orNull(text),
  count: amount,
  seconds: amount,
  first: amount,
  dropped: orNothing(amount),
  withoutSystem: orNothing(flag),
  cut: orNothing(flag),
  error: orNothing(text),
});

function asAnswer(value, place) {
  const answer = object({ shown: amount, variants: listOf(variant) })(value, place);
  return answer.variants[answer.shown] ? answer : wrong(`${place}.shown`, "the number of a variant");
}

const asConversation = object({
  title: check("a text that is not empty", (value) => typeof value === "string" && value.trim() !== ""),
  models: (value, place) => [...new Set(listOf(text)(value, place))],
  settings: object({ ...Object.fromEntries(NUMBERS.map((field) => [field.key, setting(field)])), system: text }),
  turns: listOf(object({ user: text, answers: mapOf(asAnswer) })),
});

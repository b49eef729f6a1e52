// The chat page: which conversation is open, which models answer, and what each control does.

import { answer as ask, isKey, KeyNeeded, models as readModels, presets as readPresets, useKey } from "./api.js";
import { button } from "./button.js";
import * as file from "./file.js";
import { disclosure, replaceItems } from "./focus.js";
import { Settings } from "./settings.js";
import { el } from "../dom.js";
import { newId, openStore } from "./store.js";
import { Thread } from "./thread.js";
import { textOf } from "./tokens.js";

const FEW = 6; // as many models are listed side by side; more are in a list that opens
const SAVE_MS = 500; // an answer is saved so often while it is written, because the page may be left at any time
const EXAMPLES = {
  chat: ["Tell me a story about Lily, who makes a kite with a friend in the park.", "Write a story about Tom, who breaks a lamp in the bedroom and tells the truth."],
  text: ["Once upon a time", "One day, a girl named Lily"],
};

const $ = (id) => document.getElementById(id);
const running = new Map(); // answer -> AbortController
const deleted = new Set(); // ids of conversations; an answer that was stopped by the deletion must not save its conversation
let models = [];
let store;
let settings;
let conversation;

const thread = new Thread($("thread"), {
  edit: (i, text) => fork(i, text),
  regenerate: (i, model) => write(i, model, { prefix: "", tokens: [] }),
  choose: (i, model, place, text) => {
    const { tokens } = shownAnswer(i, model);
    const logprob = tokens[place][2].find(([other]) => other === text)?.[1] ?? tokens[place][1];
    const kept = [...tokens.slice(0, place), [text, logprob, tokens[place][2]]];
    write(i, model, { prefix: textOf(kept), tokens: kept });
  },
  variant: (i, model, by) => {
    conversation.turns[i].answers[model].shown += by;
    thread.views.get(`${i} ${model}`).renew();
    save();
  },
});

const named = (id) => models.find((model) => model.id === id);
const shownAnswer = (i, model) => conversation.turns[i].answers[model].variants[conversation.turns[i].answers[model].shown];

// --- conversations ---------------------------------------------------------------------------------------------------

function fresh() {
  const [first] = models;
  const preset = first?.chats ? "precise" : "balanced";
  return { id: newId(), title: "", updated: 0, models: first ? [first.id] : [], settings: settings.initial(preset), turns: [] };
}

function open(next) {
  stop();
  conversation = next;
  settings.show(conversation.settings);
  showModels();
  if (conversation.turns.length) thread.show(conversation);
  else welcome();
  listConversations();
}

async function save() {
  await put(conversation);
}

async function put(changed) {
  await keep(changed);
  await listConversations();
}

async function keep(changed) {
  if (!changed.turns.length || deleted.has(changed.id)) return;
  try {
    const isCopy = await store.put(changed);
    if (isCopy) trouble(`This conversation was changed in another tab, so this tab has saved it as “${changed.title}”.`);
  } catch (error) {
    trouble(`This conversation cannot be saved in this browser: ${error.message}`);
  }
}

async function listConversations() {
  sessionStorage.setItem("open", conversation.id);
  const all = await store.all();
  const items = all.map((one) => {
    const isOpen = one.id === conversation.id;
    const title = button(one.title, `open ${one.title}`, async () => {
      // read again, because an answer or another page may have changed it since it was listed
      if (one.id !== conversation.id) open((await store.get(one.id)) ?? one);
      $("thread").focus();
    });
    title.classList.add("title");
    if (isOpen) title.ariaCurrent = "true";
    const remove = button("×", `delete ${one.title}`, async () => {
      if (!confirm(`Delete “${one.title}”?`)) return;
      deleted.add(one.id);
      await store.delete(one.id);
      if (one.id === conversation.id) open(fresh());
      else listConversations();
    });
    return el("li", { class: isOpen ? "open" : "", "data-id": one.id }, title, remove);
  });
  replaceItems($("conversations"), items, $("new"));
}

// An edited message begins a new conversation, so that the old answers stay in the list.
function fork(i, text) {
  const turns = structuredClone(conversation.turns.slice(0, i));
  open({ ...structuredClone(conversation), id: newId(), turns, title: i ? `${conversation.title} (edited)` : "" });
  send(text);
}

function exportJson() {
  const link = el("a", { href: URL.createObjectURL(new Blob([file.written(conversation)], { type: "application/json" })), download: "positron-conversation.json" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function importJson(chosen) {
  let read;
  try {
    read = await file.read(chosen);
  } catch (error) {
    trouble(`${chosen.name} cannot be imported: ${error.message}`);
    return;
  }
  trouble("");
  open(read);
  $("thread").focus();
  await save();
}

// --- answers ---------------------------------------------------------------------------------------------------------

function send(text) {
  conversation.title ||= text.trim().replaceAll(/\s+/g, " ").slice(0, 60);
  if (!conversation.turns.length) thread.show(conversation);
  const turn = { user: text, answers: Object.create(null) }; // a model may be called __proto__
  for (const id of conversation.models) turn.answers[id] = { shown: -1, variants: [] };
  conversation.turns.push(turn);
  const i = conversation.turns.length - 1;
  for (const id of conversation.models) addVariant(turn, id, { prefix: "", tokens: [] });
  thread.append(turn);
  for (const id of conversation.models) stream(i, id);
  save();
}

function write(i, model, start) {
  if (!named(model)) {
    trouble(`${model} is not among the models of this server.`);
    return;
  }
  addVariant(conversation.turns[i], model, start);
  thread.views.get(`${i} ${model}`).renew();
  stream(i, model);
}

// The answer is saved before its end is known. If the page is left meanwhile, it is stopped.
function addVariant(turn, model, { prefix, tokens }) {
  const answers = turn.answers[model];
  const continues = !named(model).chats;
  answers.variants.push({ text: prefix, prefix, tokens, continues, finish: "stopped", count: 0, seconds: 0, first: 0 });
  answers.shown = answers.variants.length - 1;
}

// What the model reads: its own answers to the earlier questions.
function messagesFor(i, model) {
  return conversation.turns.slice(0, i + 1).flatMap((turn, k) => {
    const said = k < i ? turn.answers[model]?.variants[turn.answers[model].shown]?.text : null;
    if (k < i && !said) return [];
    return [{ role: "user", content: turn.user }, ...(said ? [{ role: "assistant", content: said }] : [])];
  });
}

async function stream(i, id) {
  const [current, answer, controller] = [conversation, shownAnswer(i, id), new AbortController()];
  const values = conversation.settings;
  const chosen = Object.fromEntries(Object.entries(values).filter(([, value]) => value !== null));
  const seed = values.seed + conversation.turns[i].answers[id].shown;
  running.set(answer, controller);
  showRunning();
  const begin = performance.now();
  let saved = begin;
  const passed = () => (performance.now() - begin) / 1000;
  const visible = () => current === conversation && shownAnswer(i, id) === answer;
  thread.update(i, id, true);
  try {
    for await (const part of ask(named(id), messagesFor(i, id), { ...chosen, seed, prefix: answer.prefix }, controller.signal)) {
      if (part.tokens.length && !answer.count) answer.first = passed();
      answer.text += part.text;
      answer.tokens.push(...part.tokens);
      answer.count += part.tokens.length;
      answer.finish = part.finish ?? answer.finish;
      Object.assign(answer, part.leftOut);
      if (visible()) thread.update(i, id, true);
      if (performance.now() - saved > SAVE_MS) {
        saved = performance.now();
        keep(current);
      }
    }
    $("status").textContent = `${id} answered: ${answer.text}`;
  } catch (error) {
    if (error instanceof KeyNeeded) askForKey();
    if (controller.signal.aborted) answer.finish = "stopped";
    else {
      answer.finish = null;
      answer.error = error instanceof TypeError ? "The server does not answer. If it was stopped, start it again." : error.message;
    }
  }
  answer.seconds = passed();
  running.delete(answer);
  showRunning();
  if (visible()) thread.update(i, id, false);
  await put(current);
}

function stop() {
  for (const controller of running.values()) controller.abort();
}

// Of the two buttons, the shown one takes over the focus of the hidden one, and of a control that began an answer and has gone.
function showRunning() {
  const focused = document.activeElement;
  $("stop").hidden = running.size === 0;
  $("send").hidden = running.size > 0;
  if (running.size && [$("send"), document.body].includes(focused)) $("stop").focus();
  if (!running.size && focused === $("stop")) $("question").focus();
}

// --- the page --------------------------------------------------------------------------------------------------------

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function showModels() {
  const known = new Set(models.map((model) => model.id));
  conversation.models = conversation.models.filter((id) => known.has(id));
  if (!conversation.models.length && models.length) conversation.models = [models[0].id];
  const boxes = models.map((model) => {
    const box = el("input", { type: "checkbox", checked: conversation.models.includes(model.id) });
    box.addEventListener("change", () => {
      const chosen = models.map(({ id }) => id).filter((id) => (id === model.id ? box.checked : conversation.models.includes(id)));
      if (!chosen.length) box.checked = true;
      else conversation.models = chosen;
      if (!conversation.turns.length) welcome();
      counted();
    });
    return el("label", { title: about(model) }, box, model.id);
  });
  const summary = el("summary");
  const counted = () => { summary.textContent = `${conversation.models.length} of ${models.length} models answer`; };
  counted();
  const legend = el("legend", { class: "unseen" }, "Models that answer");
  $("models").replaceChildren(legend, ...(models.length > FEW ? [el("details", {}, summary, ...boxes)] : boxes));
}

const about = ({ chats, max_model_len: context }) => `${chats ? "answers messages" : "continues a text"}; reads up to ${context} tokens`;

function welcome() {
  $("question").disabled = !models.length;
  if (!models.length) {
    $("thread").replaceChildren(el("div", { class: "welcome" }, el("p", {}, "There is no trained run yet: train one, then reload this page.")));
    return;
  }
  const chats = conversation.models.some((id) => named(id)?.chats);
  const examples = EXAMPLES[chats ? "chat" : "text"].map((text) => el("button", { type: "button", class: "button", onclick: () => send(text) }, text));
  const what = chats ? "Write a message, or try one of these:" : "This model continues a text. Write a beginning, or try one of these:";
  $("question").placeholder = chats ? "Write a message" : "Write the beginning of a text";
  $("thread").replaceChildren(el("div", { class: "welcome" }, el("p", {}, what), el("div", { class: "examples" }, ...examples)));
}

function askForKey() {
  $("key-form").hidden = false;
  $("key").focus();
}

const showHistory = disclosure($("show-history"), $("history"));
disclosure($("show-settings"), $("settings"));

function submit() {
  const text = $("question").value;
  if (!text.trim() || running.size || !conversation.models.length) return;
  $("question").value = "";
  keepDraft();
  send(text);
}

// A message that is not sent yet, and which conversation is open, outlive a visit to another tab of the site and a reload.
function keepDraft() {
  sessionStorage.setItem("draft", $("question").value);
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("question").addEventListener("input", keepDraft);
$("question").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !$("question").value) {
    event.preventDefault();
    thread.editLast();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
for (const event of ["pointerdown", "focusin"]) { // what is outside is covered on a narrow screen
  document.addEventListener(event, ({ target }) => target.closest("#history") || showHistory(false));
}
$("show-history").addEventListener("click", () => $("new").focus()); // it comes before its button
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", () => {
  open(fresh());
  $("question").focus();
});
$("show-tokens").addEventListener("change", () => thread.showTokens($("show-tokens").checked));
$("export").addEventListener("click", exportJson);
$("import").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => {
  const [chosen] = $("file").files;
  if (chosen) importJson(chosen);
  $("file").value = ""; // otherwise the same file could not be chosen again
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!isKey(key)) {
    trouble("The API key has a character that no key has, such as a space, an invisible character or a letter that is not ASCII: copy or type the key again.");
    return;
  }
  useKey(key);
  location.reload();
});

async function start() {
  store = await openStore();
  if (!store.lasts) trouble("This browser keeps no data for this page: conversations are lost when you close the page.");
  try {
    models = await readModels();
    settings = new Settings($("settings"), await readPresets(), (values) => {
      conversation.settings = values;
      save();
    });
    open((await store.get(sessionStorage.getItem("open") ?? "")) ?? fresh());
    $("question").value = sessionStorage.getItem("draft") ?? "";
    $("question").focus();
  } catch (error) {
    if (error instanceof KeyNeeded) askForKey();
    else trouble(error.message);
  }
}

start();

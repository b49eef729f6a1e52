// The conversation on the page: turns, each with a question and the answers of one or several models beside each other.

import { Alternatives, reader, tokenElement } from "./tokens.js";
import { button, enable } from "./button.js";
import { counted, el } from "../dom.js";

const NEAR = 80; // pixels from the end within which the page follows the text

export class Thread {
  // on: {edit(turn, text), regenerate(turn, model), choose(turn, model, token, text), variant(turn, model, by)}
  constructor(host, on) {
    [this.host, this.on, this.views, this.withTokens] = [host, on, new Map(), false];
    this.alternatives = new Alternatives(host);
  }

  show(conversation) {
    this.conversation = conversation;
    this.views.clear();
    this.alternatives.close();
    this.host.replaceChildren(...conversation.turns.map((turn, i) => this.turn(turn, i)));
    this.host.scrollTop = this.host.scrollHeight;
  }

  append(turn) {
    this.host.append(this.turn(turn, this.conversation.turns.length - 1));
    this.host.scrollTop = this.host.scrollHeight;
  }

  // Show what has changed in one answer.
  update(i, model, running) {
    const follow = this.host.scrollHeight - this.host.scrollTop - this.host.clientHeight < NEAR;
    this.views.get(`${i} ${model}`)?.update(running);
    if (follow) this.host.scrollTop = this.host.scrollHeight;
  }

  turn(turn, i) {
    const models = Object.keys(turn.answers);
    const made = el("section", { class: models.length > 1 ? "turn wide" : "turn", "aria-label": `Turn ${i + 1}` });
    const lanes = el("div", { class: "lanes" });
    for (const model of models) {
      const view = new AnswerView(this, turn, i, model);
      this.views.set(`${i} ${model}`, view);
      lanes.append(view.element);
    }
    made.append(this.question(turn, i), lanes);
    return made;
  }

  question(turn, i) {
    const text = el("div", { class: "text" }, turn.user);
    const made = el("div", { class: "question" }, el("h2", { class: "unseen" }, "You"), text);
    const edit = button("Edit", "edit this message and send it again", () => this.edit(made, turn, i));
    edit.classList.add("edit");
    made.append(edit);
    return made;
  }

  edit(host, turn, i) {
    const [before, opener] = [[...host.children], document.activeElement];
    const field = el("textarea", { rows: Math.min(8, 1 + turn.user.split("\n").length), "aria-label": "edited message" }, turn.user);
    const back = () => {
      host.replaceChildren(...before);
      opener.focus();
    };
    const sendAgain = () => field.value.trim() && this.on.edit(i, field.value);
    const send = el("button", { type: "button", class: "button primary", onclick: sendAgain }, "Send again");
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      send.click();
    });
    const editor = el("div", { class: "editor" }, field, el("div", { class: "actions" }, button("Cancel", "keep the message", back), send));
    editor.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      back();
    });
    host.replaceChildren(editor);
    field.focus();
  }

  editLast() {
    [...this.host.querySelectorAll(".edit")].at(-1)?.click();
  }

  showTokens(yes) {
    this.withTokens = yes;
    this.alternatives.close();
    for (const view of this.views.values()) view.renew();
  }
}

class AnswerView {
  constructor(thread, turn, i, model) {
    [this.thread, this.turn, this.i, this.model] = [thread, turn, i, model];
    this.text = el("div", { class: "text" });
    this.error = el("p", { class: "error" });
    this.note = el("p", { class: "faint small" });
    this.regenerate = button("Regenerate", "answer again, with the next seed", () => thread.on.regenerate(i, model));
    this.copy = button("Copy", "copy this answer", () => navigator.clipboard.writeText(this.answer.text));
    this.copy.hidden = !navigator.clipboard; // as where the page comes from another machine by http
    this.previous = button("‹", "previous answer", () => thread.on.variant(i, model, -1));
    this.next = button("›", "next answer", () => thread.on.variant(i, model, 1));
    [this.which, this.facts] = [el("span"), el("span", { class: "facts" })];
    const footer = el("footer", {}, this.regenerate, this.copy, this.previous, this.which, this.next, this.facts);
    this.element = el("article", { class: "answer" }, el("h3", {}, model), this.text, this.error, this.note, footer);
    this.renew();
  }

  get answer() {
    const { variants, shown } = this.turn.answers[this.model];
    return variants[shown];
  }

  renew() {
    this.text.replaceChildren();
    this.shownTokens = 0;
    this.update(this.running ?? false);
  }

  update(running) {
    this.running = running;
    const { answer } = this;
    this.element.classList.toggle("running", running);
    this.element.ariaBusy = String(running);
    if (this.thread.withTokens && answer.tokens.length) this.showTokens(answer);
    else this.text.replaceChildren(...this.beginning(answer), answer.text);
    this.error.textContent = answer.error ?? "";
    this.error.hidden = !answer.error;
    this.note.textContent = noteOn(answer);
    this.note.hidden = !this.note.textContent;
    this.showFooter(answer, running);
  }

  // A model that continues a text is shown with the text that it continues.
  beginning(answer) {
    return answer.continues ? [el("span", { class: "beginning" }, this.turn.user)] : [];
  }

  // Only new tokens are appended, so that a focused or opened token stays.
  showTokens(answer) {
    if (this.shownTokens === 0) {
      this.text.replaceChildren(...this.beginning(answer));
      this.added = reader();
    }
    answer.tokens.slice(this.shownTokens).forEach((token, k) => {
      const place = this.shownTokens + k;
      this.text.append(tokenElement(token, this.added(token[0]), (anchor) => this.thread.alternatives.open(anchor, token, (text) => this.choose(place, text))));
    });
    this.shownTokens = answer.tokens.length;
    if (!this.text.querySelector("[tabindex='0']")) this.text.querySelector(".token").tabIndex = 0;
  }

  choose(place, text) {
    if (this.running) return;
    this.thread.on.choose(this.i, this.model, place, text);
    this.text.querySelectorAll(".token")[place].focus();
  }

  showFooter(answer, running) {
    const { variants, shown } = this.turn.answers[this.model];
    for (const one of [this.regenerate, this.copy]) enable(one, !running);
    enable(this.previous, !running && shown > 0);
    enable(this.next, !running && shown + 1 < variants.length);
    for (const one of [this.previous, this.which, this.next]) one.hidden = variants.length < 2;
    this.which.textContent = `${shown + 1} of ${variants.length}`;
    this.facts.textContent = running ? "" : factsOf(answer);
  }
}

// Return what the model did not read of the conversation, because it did not fit the context.
function noteOn({ dropped, withoutSystem, cut }) {
  return [
    dropped ? `The conversation is longer than the context: the model did not read the oldest ${dropped === 1 ? "turn" : `${dropped} turns`}.` : "",
    withoutSystem ? "The system prompt is too long for the context: the model did not read it." : "",
    cut ? "The message is too long for the context: the model read only its end." : "",
  ].filter(Boolean).join(" ");
}

function factsOf({ count, seconds, first, finish }) {
  if (!count) return { stopped: "stopped", stop: "no text: the model ended its answer at once" }[finish] ?? "";
  const speed = count > 1 && seconds > first ? ` · ${Math.round((count - 1) / (seconds - first)).toLocaleString("en-US")} tokens/s` : "";
  const end = { length: " · cut at the limit", stopped: " · stopped" }[finish] ?? "";
  return `${counted(count)}${speed} · first after ${Math.round(first * 1000)} ms${end}`;
}

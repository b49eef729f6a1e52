// Tokens of an answer with their probabilities, and the list of alternatives of one of them.

import { element } from "./dom.js";

const MOST_BITS = 8; // a surprise of as many bits or more has the strongest colour

const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return share < 0.1 ? "< 0.1 %" : `${share.toFixed(share < 10 ? 1 : 0)} %`;
};

// White space as signs, so that it can be seen.
const visible = (text) => text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "→") || "(empty)";

// Special tokens and parts of characters have no text with which the answer could continue.
const isText = (text) => text !== "" && !/^<\|.*\|>$/.test(text) && !text.includes("\ufffd") && !text.startsWith("bytes:");

// A span, because a button would not wrap within the text. The arrow keys move between the tokens of an answer.
export function tokenElement([text, logprob], open) {
  const made = element("span", { className: "token", role: "button", tabIndex: -1, textContent: text, title: `${visible(text)}: ${percent(logprob)}` });
  made.ariaLabel = `${text}, ${percent(logprob)}`;
  made.ariaExpanded = "false";
  made.style.setProperty("--share", Math.min(1, -logprob / Math.LN2 / MOST_BITS).toFixed(3));
  made.addEventListener("click", () => open(made));
  made.addEventListener("keydown", (event) => {
    const next = { ArrowRight: made.nextElementSibling, ArrowLeft: made.previousElementSibling }[event.key];
    if (event.key === "Enter" || event.key === " ") open(made);
    else if (!next) return;
    else [next.tabIndex, made.tabIndex] = [0, -1];
    event.preventDefault();
    next?.focus();
  });
  return made;
}

export class Alternatives {
  constructor(host) {
    this.host = host;
    this.list = element("ul");
    this.title = element("p");
    this.box = element("div", { id: "alternatives", hidden: true, role: "dialog", ariaLabel: "Alternatives of this token" }, this.title, this.list);
    document.body.append(this.box);
    this.box.addEventListener("keydown", (event) => this.keys(event));
    document.addEventListener("pointerdown", (event) => {
      if (!this.box.contains(event.target) && !event.target.closest(".token")) this.close();
    });
    host.addEventListener("scroll", () => this.close());
  }

  // Show what the model might have written instead; choose(text) is called with the selected text.
  open(anchor, [text, logprob, top], choose) {
    this.close();
    this.anchor = anchor;
    anchor.ariaExpanded = "true";
    this.title.textContent = `${visible(text)} had ${percent(logprob)}. Select a token to continue from it:`;
    const all = top.some(([other]) => other === text) ? top : [...top, [text, logprob]];
    this.list.replaceChildren(...[...all].sort((a, b) => b[1] - a[1]).map(([other, value]) => {
      const made = element("button", { type: "button", disabled: !isText(other) }, element("span", { textContent: visible(other) }), element("span", { textContent: percent(value) }));
      made.style.setProperty("--share", Math.exp(value).toFixed(3));
      if (other === text) made.ariaCurrent = "true";
      made.addEventListener("click", () => {
        this.close();
        choose(other);
      });
      return element("li", {}, made);
    }));
    this.box.hidden = false;
    const [at, size] = [anchor.getBoundingClientRect(), this.box.getBoundingClientRect()];
    this.box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
    this.box.style.top = `${at.bottom + size.height + 8 < innerHeight ? at.bottom + 4 : Math.max(8, at.top - size.height - 4)}px`;
    this.list.querySelector("button:not(:disabled)")?.focus();
  }

  close() {
    if (this.box.hidden) return;
    this.box.hidden = true;
    this.anchor.ariaExpanded = "false";
  }

  keys(event) {
    const buttons = [...this.list.querySelectorAll("button:not(:disabled)")];
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") {
      event.stopPropagation();
      this.close();
      this.anchor.focus();
    } else if (by) {
      event.preventDefault();
      buttons.at((buttons.indexOf(document.activeElement) + by) % buttons.length)?.focus();
    }
  }
}

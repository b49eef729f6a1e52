// Tokens of an answer with their probabilities, and the list of alternatives of one of them.

import { el, percent, spoken, visible } from "../dom.js";

const MOST_BITS = 8; // a surprise of as many bits or more has the strongest colour

const probability = (logprob) => percent(Math.exp(logprob));

// The server names a token that is only a part of a character by its bytes, such as bytes:\xc3.
const BYTES = /^bytes:((?:\\x[0-9a-f]{2})+)$/;
const encoder = new TextEncoder();
const bytesOf = (name) => (BYTES.test(name) ? Uint8Array.from(name.match(/(?<=\\x)../g), (hex) => parseInt(hex, 16)) : encoder.encode(name));

// Special tokens and parts of characters have no text with which the answer could continue.
const isText = (name) => name !== "" && !/^<\|.*\|>$/.test(name) && !name.includes("\ufffd") && !BYTES.test(name);

const part = (name) => `part of a character (${name.match(/(?<=\\x)../g).join(" ")})`;
const shown = (name) => (BYTES.test(name) ? part(name) : visible({ text: name }));
const said = (name) => (BYTES.test(name) ? part(name) : spoken({ text: name }));

// Return a function that returns what the next token adds to the text: a character belongs to the token that completes it.
export function reader() {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return (name) => decoder.decode(bytesOf(name), { stream: true });
}

// The text of several tokens.
export function textOf(tokens) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return tokens.map(([name]) => decoder.decode(bytesOf(name), { stream: true })).join("") + decoder.decode();
}

// A span, because a button would not wrap within the text. Tab reaches one token of an answer, arrow keys the others. added: what
// the token adds to the text.
export function tokenElement([text, logprob], added, open) {
  const made = el("span", {
    class: "token", role: "button", tabindex: -1, title: `${shown(text)}: ${probability(logprob)}`,
    "aria-label": `${said(text)}, ${probability(logprob)}`, "aria-haspopup": "dialog", "aria-expanded": "false",
    share: Math.min(1, -logprob / Math.LN2 / MOST_BITS).toFixed(3), onclick: () => open(made),
  }, added || null);
  made.addEventListener("keydown", (event) => {
    const next = { ArrowRight: made.nextElementSibling, ArrowLeft: made.previousElementSibling }[event.key];
    if (event.key === "Enter" || event.key === " ") open(made);
    else if (!next?.matches(".token")) return;
    event.preventDefault();
    next?.focus();
  });
  made.addEventListener("focus", () => {
    made.parentElement.querySelector("[tabindex='0']").tabIndex = -1;
    made.tabIndex = 0;
  });
  return made;
}

export class Alternatives {
  constructor(host) {
    this.list = el("ul");
    this.title = el("p");
    this.box = el("div", { id: "alternatives", hidden: true, role: "dialog", "aria-label": "Alternatives of this token", tabindex: -1 }, this.title, this.list);
    this.box.addEventListener("keydown", (event) => this.keys(event));
    this.box.addEventListener("focusout", ({ relatedTarget: next }) => next && !this.box.contains(next) && this.close());
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
    this.title.textContent = `${shown(text)} had ${probability(logprob)}. Select a token to continue from it:`;
    const all = top.some(([other]) => other === text) ? top : [...top, [text, logprob]];
    this.list.replaceChildren(...[...all].sort((a, b) => b[1] - a[1]).map(([other, value]) => {
      const select = () => {
        this.close();
        choose(other);
      };
      return el("li", {}, el("button", {
        type: "button", disabled: !isText(other), share: Math.exp(value).toFixed(3), onclick: select,
        "aria-current": other === text ? "true" : null,
      }, el("span", {}, shown(other)), el("span", {}, probability(value))));
    }));
    anchor.parentElement.after(this.box); // so that Tab goes from the text into the list, and on to what follows the text
    this.box.hidden = false;
    const [at, size] = [anchor.getBoundingClientRect(), this.box.getBoundingClientRect()];
    this.box.style.left = `${Math.max(8, Math.min(at.left, innerWidth - size.width - 8))}px`;
    this.box.style.top = `${at.bottom + size.height + 8 < innerHeight ? at.bottom + 4 : Math.max(8, at.top - size.height - 4)}px`;
    (this.list.querySelector("button:not(:disabled)") ?? this.box).focus();
  }

  close() {
    if (this.box.hidden) return;
    if (this.box.contains(document.activeElement)) this.anchor.focus({ preventScroll: true });
    this.box.hidden = true;
    this.anchor.ariaExpanded = "false";
  }

  keys(event) {
    const buttons = [...this.list.querySelectorAll("button:not(:disabled)")];
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") {
      event.stopPropagation();
      this.close();
    } else if (by) {
      event.preventDefault();
      buttons.at((buttons.indexOf(document.activeElement) + by) % buttons.length)?.focus();
    }
  }
}

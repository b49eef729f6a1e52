// A button that looks like a link.

import { el } from "../dom.js";

// label: what the button does; it is the button's name where its text is only a sign.
export const button = (text, label, onclick, attributes = {}) =>
  el("button", { type: "button", class: "link", title: label, "aria-label": /\p{L}/u.test(text) ? null : label, onclick, ...attributes }, text);

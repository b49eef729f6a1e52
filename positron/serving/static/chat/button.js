// A button that looks like a link.

import { el } from "../dom.js";

// label: what the button does; it is the button's name where its text is only a sign.
export function button(text, label, onclick) {
  const made = el("button", { type: "button", class: "link", title: label, "aria-label": /\p{L}/u.test(text) ? null : label }, text);
  made.addEventListener("click", () => made.ariaDisabled === "true" || onclick());
  return made;
}

// Say whether a button does something now. It stays focusable, because `disabled` would take the focus away from it.
export function enable(made, yes) {
  made.ariaDisabled = String(!yes);
}

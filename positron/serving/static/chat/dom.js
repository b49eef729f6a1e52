// Elements, made of properties and children; text is always text, never markup.

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// label: what the button does; it is the button's name where its text is only a sign.
export function button(text, label, onclick, properties = {}) {
  const made = element("button", { type: "button", className: "link", textContent: text, title: label, ...properties });
  if (!/\p{L}/u.test(text)) made.ariaLabel = label;
  made.addEventListener("click", onclick);
  return made;
}

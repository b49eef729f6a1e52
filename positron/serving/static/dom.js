// Build elements and write numbers and tokens, for all pages. Text of a run or a model only becomes text, never markup.

/** Create an element: el("p", {class: "faint", onclick: f}, "text", child). Keys with on are listeners, others attributes. */
export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "share") element.style.setProperty("--share", String(value));
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Write a probability: 12 %, 0.3 %, < 0.1 %. */
export function percent(p) {
  if (p === 0) return "0 %";
  if (p < 0.001) return "< 0.1 %";
  return `${p < 0.0995 ? (100 * p).toFixed(1) : Math.round(100 * p)} %`;
}

/** Write a number with `digits` decimals; an en dash where there is none. */
export function decimal(value, digits = 2) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

/** Write a number with its sign. */
export function signed(value, digits = 3) {
  const text = decimal(value, digits);
  return /^\d/.test(text) ? `+${text}` : text;
}

/** Write a whole number with separators. */
export const whole = (value) => value.toLocaleString("en-US");

/** Write a number of tokens. */
export const counted = (n) => `${whole(n)} token${n === 1 ? "" : "s"}`;

/** Show a token where spaces and line ends must be seen. */
export function visible(token) {
  return token.text === "" ? "∅" : token.text.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll("\r", "␍");
}

/** Name a token for a screen reader. */
export const spoken = (token) => (token.special ? token.text : `“${token.text.replaceAll("\n", "line end")}”`);

/** Return the width of a bar in percent. */
export const width = (p) => Math.round(1000 * Math.min(1, Math.max(0, p))) / 10;

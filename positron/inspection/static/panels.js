// The parts of the inspector. Each create function returns {element, show(state)}; `act` holds what a part may ask for.

import { drawLabelled, drawMatrix, palette } from "./heat.js";
import { counted, decimal, el, percent, signed, spoken, visible, whole, width } from "../dom.js";
import { distribution } from "./sampling.js";
import { speedOf } from "./sources.js";

const SHOWN = 12; // bars of candidates
const MEASURED = ["previous", "induction", "first", "text_previous", "text_induction"]; // of a head, see HeadScore

function card(title, ...children) {
  const id = `look-${title.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
  return el("section", { class: "card", "aria-labelledby": id }, el("h2", { id }, title), ...children);
}

/** What a button shows, and in its place what a screen reader says. */
function named(text, ...shown) {
  for (const part of shown) part.setAttribute("aria-hidden", "true");
  return [...shown, el("span", { class: "look-unseen" }, text)];
}

/** A table that scrolls inside itself. */
function scrolling(label, table) {
  return el("div", { class: "look-scroll", role: "region", "aria-label": label, tabindex: "0" }, table);
}

/** The head of a table; the columns from number `numbers` on hold numbers. */
const headOf = (names, numbers) =>
  el("thead", {}, el("tr", {}, ...names.map((name, i) => el("th", { scope: "col", class: i >= numbers ? "number" : null }, name))));

/** The tokens of the prompt, coloured and numbered by surprise or regret. Arrow keys move the marked position. */
export function createStrip(act) {
  const list = el("ol", { class: "look-strip", "aria-label": "Tokens of the prompt" });
  const choice = el("select", { onchange: () => act.colourBy(choice.value) });
  choice.append(el("option", { value: "bits" }, "surprise"), el("option", { value: "regret" }, "regret"));
  const by = el("label", {}, "Number and colour: ", choice);
  const note = el("p", { class: "faint" });
  const element = card("Tokens", by, list, note);
  list.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    act.moveTo(by, true);
  });
  return {
    element,
    show({ data, truth, position, colour, takeFocus }) {
      by.hidden = !truth;
      const useRegret = Boolean(truth) && colour === "regret";
      choice.value = useRegret ? "regret" : "bits";
      const value = (t) => (useRegret ? truth.tokens[t].regret : data.tokens[t].bits);
      const items = data.tokens.map((token, t) => {
        const bits = value(t), label = t === 0 ? "given" : `${useRegret ? "regret" : "surprise"} ${decimal(bits, 1)} bits`;
        const button = el("button", {
          type: "button", class: token.special ? "look-token special" : "look-token",
          "aria-current": t === position ? "true" : null, tabindex: t === position ? "0" : "-1",
          share: Math.round(Math.min(1, Math.max(0, (bits ?? 0) / (useRegret ? 2 : 8))) * 100),
          onclick: () => act.moveTo(t - position, false),
        }, ...named(`Token ${t}, ${spoken(token)}, ${label}${token.p === null ? "" : `, probability ${percent(token.p)}`}`,
          el("span", { class: "look-text" }, visible(token)), el("span", { class: "look-bits" }, t ? decimal(bits, 1) : "given")));
        return el("li", {}, button);
      });
      list.replaceChildren(...items);
      if (takeFocus) items[position].firstChild.focus();
      const scored = data.tokens.slice(1), mean = scored.reduce((sum, { bits }) => sum + bits, 0) / scored.length;
      const regrets = truth?.tokens.map(({ regret }) => regret).filter((regret) => regret !== null) ?? [];
      note.textContent =
        (scored.length ? `${decimal(mean)} bits per token on ${counted(scored.length)}. ` : "") +
        (regrets.length ? `Regret: ${decimal(regrets.reduce((a, b) => a + b, 0) / regrets.length)} bits per token above the true distribution. ` : "") +
        "· is a space, ↵ a line end. Choose a token, or move with the arrow keys, to see what the model expects after it." +
        (truth?.departure ? ` The prompt leaves the grammar of the built-in stories at token ${truth.departure.token}: ${truth.departure.message}` : "");
    },
  };
}

/** Bars of the next token's probabilities, which follow the sliders at once. */
export function createNext(act) {
  const title = el("p", { class: "look-after" }), bars = el("ol", { class: "look-bars", "aria-label": "Most probable next tokens" });
  const note = el("p", { class: "faint", role: "status" });
  const legend = el("p", { class: "faint look-legend" }, el("i", { class: "model" }), " model ", el("i", { class: "true" }), " true, by the grammar of the stories");
  const element = card("Next token", title, bars, legend, note);
  return {
    element,
    show({ data, truth, position, settings }) {
      const { focus } = data, token = data.tokens[focus.position];
      title.replaceChildren("after ", el("strong", {}, visible(token)), ` (token ${focus.position} of ${data.tokens.length - 1})`);
      const { ids, p } = focus.logits // indices into the descending logits
        ? distribution(focus.logits, settings)
        : { ids: [...focus.top.keys()], p: focus.top.map((candidate) => candidate.p) };
      const share = new Map(ids.map((i, place) => [i, p[place]]));
      const told = truth?.next[focus.position] ?? null;
      const truthOf = new Map(told?.top.map((candidate) => [candidate.id, candidate.true]) ?? []);
      const rows = focus.top.slice(0, SHOWN).map((candidate, i) => ({ ...candidate, share: share.get(i) ?? 0, kept: share.has(i), true: truthOf.get(candidate.id) ?? 0 }));
      for (const candidate of told?.top.slice(0, 4) ?? []) {
        if (rows.some(({ id }) => id === candidate.id) || !focus.logits) continue;
        // Its logit below the largest one; what can be drawn is the beginning of the descending logits.
        const below = Math.log(candidate.model / focus.top[0].p), least = focus.logits[ids.at(-1)] - focus.logits[0];
        const kept = settings.temperature > 0 && below >= least - 1e-6;
        rows.push({ ...candidate, share: kept ? p[0] * Math.exp(below / settings.temperature) : 0, kept });
      }
      const canAppend = focus.position === data.tokens.length - 1 && !data.chats; // a message ends before the answer
      bars.replaceChildren(...rows.map((row) => {
        const name = el("button", {
          type: "button", class: "look-name", disabled: !canAppend || row.special,
          title: canAppend && !row.special ? "Append to the prompt" : null, onclick: () => act.append(row.text),
        }, ...named(`${spoken(row)}${canAppend && !row.special ? ": append to the prompt" : ""}`, el("span", {}, visible(row))));
        const truly = told ? el("span", { class: "look-number true" }, `true ${percent(row.true)}`) : null;
        return el("li", { class: row.kept ? null : "out" }, name,
          el("span", { class: "look-bar", "aria-hidden": "true" }, el("i", { class: "model", share: width(row.share) }), told ? el("i", { class: "true", share: width(row.true) }) : null),
          el("span", { class: "look-number" }, row.kept ? percent(row.share) : "excluded"), truly);
      }));
      legend.hidden = !told;
      const entropy = -p.reduce((sum, value) => sum + (value ? value * Math.log2(value) : 0), 0);
      if (!focus.logits) {
        note.textContent = "At temperature 1. Of an earlier step the file holds the whole distribution after the last token only.";
        return;
      }
      note.textContent =
        `${whole(ids.length)} of ${counted(focus.logits.length)} can be drawn; entropy ${decimal(entropy)} bits.` +
        (told ? ` The grammar allows ${counted(told.allowed)} with ${decimal(told.entropy)} bits; the model loses ${decimal(told.regret)} bits here and gives ${percent(told.outside)} to others.` : "");
    },
  };
}

/** The attention of all heads as small maps, and one of them large, with the tokens on its axes. */
export function createAttention(act) {
  const small = el("div", { class: "look-heads" }), large = el("canvas", { class: "look-large", role: "img" });
  const caption = el("p", {}), list = el("ol", { class: "look-bars", "aria-label": "Strongest attention of the chosen token" });
  const frame = el("div", { class: "look-scroll look-frame", role: "region", "aria-label": "Enlarged attention map", tabindex: "0" }, large);
  const element = card("Attention", el("div", { class: "look-enlarged" }, el("div", {}, small, caption, list), frame),
    el("p", { class: "faint" }, "Each row is a token that attends, each column a token that it attends to; the stronger the colour, the more. The outlined row is the chosen token."));
  let map = null, drawn = null;
  const buttons = new Map();
  function drawHeads({ attention, shape }) {
    drawn = attention;
    buttons.clear();
    const canvases = [], colours = palette(large);
    small.replaceChildren(...Array.from({ length: shape.n_layer }, (_, layer) => el("div", { class: "look-row" },
      el("span", { class: "faint" }, `layer ${layer}`),
      ...Array.from({ length: shape.n_head }, (_, head) => {
        const canvas = el("canvas"), name = `${layer}.${head}`;
        const button = el("button", { type: "button", disabled: !attention[layer], onclick: () => act.choose({ layer, head }) },
          ...named(`Enlarge layer ${layer}, head ${head}`, canvas, el("span", {}, name)));
        buttons.set(name, button);
        if (attention[layer]) canvases.push([canvas, attention[layer][head]]);
        return button;
      }))));
    for (const [canvas, weights] of canvases) drawMatrix(canvas, weights, colours);
  }
  large.addEventListener("click", (event) => {
    const cell = map?.at(event.offsetX, event.offsetY);
    if (cell) act.moveTo(cell.row - act.position(), false);
  });
  frame.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    act.moveTo(by, false);
  });
  return {
    element,
    /** `redraw`: the colours of the page have changed. */
    show({ data, position, head, scores }, redraw = false) {
      if (data.attention !== drawn || redraw) drawHeads(data);
      for (const [key, button] of buttons) button.setAttribute("aria-pressed", String(key === `${head.layer}.${head.head}`));
      const weights = data.attention[head.layer]?.[head.head];
      frame.hidden = !weights;
      if (!weights) {
        caption.textContent = "The attention of this layer was not sent: the prompt is too long. Use a shorter one.";
        list.replaceChildren();
        return;
      }
      const names = data.tokens.map(visible), room = Math.min(560, Math.max(240, frame.clientWidth - 4));
      map = drawLabelled(large, weights, names, position, room);
      large.setAttribute("aria-label", `Attention of layer ${head.layer}, head ${head.head}: ${names.length} by ${names.length} tokens`);
      const score = scores?.heads[head.layer][head.head];
      caption.replaceChildren(el("strong", {}, `Layer ${head.layer}, head ${head.head}`), score
        ? `: previous token ${decimal(score.previous)}, induction ${decimal(score.induction)}, first token ${decimal(score.first)}; without it the loss changes by ${signed(score.cost)} bits per token.`
        : ". ", ` ${spoken(data.tokens[position])} (token ${position}) attends to:`);
      const order = weights[position].map((weight, key) => ({ weight, key })).sort((a, b) => b.weight - a.weight).slice(0, 6);
      list.replaceChildren(...order.map(({ weight, key }) => el("li", {},
        el("span", { class: "look-name" }, visible(data.tokens[key])),
        el("span", { class: "look-bar", "aria-hidden": "true" }, el("i", { class: "model", share: width(weight) })),
        el("span", { class: "look-number" }, percent(weight)))));
    },
  };
}

/** What the model would predict at each depth (logit lens), and the size of the residual stream. */
export function createLens(act) {
  const here = el("tbody"), grid = el("table", { class: "look-grid" });
  const table = el("table", {}, headOf(["Depth", "Best guesses", "Token that came", "Entropy", "Stream"], 2), here);
  const element = card("Depth by depth", scrolling("Predictions of each depth after the chosen token", table),
    el("p", { class: "faint" }, "The final norm and the output matrix, applied to the residual stream at each depth (logit lens). Stream: its root mean square."),
    el("h3", {}, "All tokens"), scrolling("Best guess at each depth and token", grid));
  const depthName = (depth) => (depth === 0 ? "embedding" : `after block ${depth - 1}`);
  let drawn = null, names = [];
  function drawGrid({ lens, tokens }, depths) {
    drawn = lens;
    names = tokens.map((token) => el("th", { scope: "col" }, visible(token)));
    const rows = depths.map((depth) => el("tr", {}, el("th", { scope: "row" }, depthName(depth)),
      ...lens[depth].map(({ top }) => el("td", { share: Math.round(top[0].p * 100) }, visible(top[0]), el("small", {}, percent(top[0].p))))));
    grid.replaceChildren(el("thead", {}, el("tr", {}, el("td", {}), ...names)), el("tbody", {}, ...rows));
  }
  return {
    element,
    show({ data, position }) {
      const depths = [...data.lens.keys()].reverse();
      here.replaceChildren(...depths.map((depth) => {
        const place = data.lens[depth][position];
        return el("tr", {}, el("th", { scope: "row" }, depthName(depth)),
          el("td", {}, ...place.top.map((token) => el("span", { class: "look-guess" }, el("b", {}, visible(token)), ` ${percent(token.p)} `))),
          el("td", { class: "number" }, place.p === null ? "–" : percent(place.p)),
          el("td", { class: "number" }, `${decimal(place.entropy)} bits`),
          el("td", { class: "number" }, decimal(data.residual[depth][position])));
      }));
      if (data.lens !== drawn) drawGrid(data, depths);
      names.forEach((name, t) => name.classList.toggle("chosen", t === position));
    },
  };
}

/** Switches for heads and layers, with what was measured of each, and what the loss and the text become without them. */
export function createParts(act) {
  const result = el("p", { class: "look-result", role: "status" }), texts = el("dl", { class: "look-texts" });
  const body = el("tbody"), reset = el("button", { type: "button", class: "button", onclick: () => act.ablate([]) }, "Switch everything on");
  const measure = el("button", { type: "button", class: "button", onclick: () => act.measure() }, "Measure all heads");
  const table = el("table", {}, headOf(["Off", "Part", "Previous", "Induction", "First", "Previous, text", "Induction, text", "Cost"], 2), body);
  const how = el("p", { class: "faint" });
  const element = card("Switch parts off", el("p", { class: "look-actions" }, reset, measure), result, texts, scrolling("Parts of the model", table), how);
  let built = "";
  const boxes = new Map();
  return {
    element,
    show({ data, ablations, scores, plainText }) {
      const { n_layer: L, n_head: H } = data.shape;
      measure.hidden = scores !== null;
      const key = JSON.stringify([L, H, scores]);
      if (key !== built) {
        built = key;
        boxes.clear();
        body.replaceChildren(...Array.from({ length: L }, (_, layer) => [
          { layer, part: "attn", name: `attention ${layer}`, spoken: `layer ${layer}, attention`, cost: scores?.attn[layer] },
          ...Array.from({ length: H }, (_, part) => ({
            layer, part, name: `head ${layer}.${part}`, spoken: `layer ${layer}, head ${part}`, ...scores?.heads[layer][part],
          })),
          { layer, part: "mlp", name: `MLP ${layer}`, spoken: `layer ${layer}, MLP`, cost: scores?.mlp[layer] },
        ]).flat().map(({ layer, part, name, spoken: full, cost, ...score }) => {
          const box = el("input", { type: "checkbox", "aria-label": `Switch off ${full}`, onchange: () => act.toggle({ layer, part }) });
          boxes.set(`${layer} ${part}`, box);
          const isHead = typeof part === "number";
          const numbers = MEASURED.map((key) => el("td", { class: "number" }, isHead ? decimal(score[key]) : ""));
          return el("tr", { class: isHead ? null : "whole" }, el("td", {}, box), el("th", { scope: "row" }, name), ...numbers,
            el("td", { class: "number" }, cost === undefined ? "–" : signed(cost)));
        }));
        how.textContent = scores
          ? `Previous, induction and first: mean attention to the token before, to the token after an earlier occurrence of the same one, ` +
            `and to the first token, on ${scores.sequences} sequences of ${scores.repeated} random tokens, twice each. ` +
            (scores.validation
              ? `Text and cost: on ${whole(scores.validation)} tokens of validation text, where a head that attends equally to all earlier tokens has an induction of ` +
                `${decimal(scores.text_chance)}; cost is what the loss, ${decimal(scores.bits, 3)} bits per token, rises by without the part. All at the best checkpoint.`
              : "The validation text is not on this machine, so there are no costs.")
          : "A part that is switched off gives zeros.";
      }
      for (const [name, box] of boxes) box.checked = ablations.some(({ layer, part }) => `${layer} ${part}` === name);
      reset.disabled = ablations.length === 0;
      const change = data.ablation;
      result.textContent = change
        ? `Loss on the prompt: ${decimal(change.before, 3)} → ${decimal(change.after, 3)} bits per token (${signed(change.before === null ? null : change.after - change.before)}).`
        : "Nothing is switched off.";
      texts.replaceChildren(...[["Likeliest continuation", plainText], ["Without these parts", change ? data.continuation : null]]
        .filter(([, text]) => text !== null && text !== undefined)
        .flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text || "(the text ends here)")]));
    },
  };
}

/** The regret of each rule of the grammar: on the prompt, and over the training of the run. */
export function createRules() {
  const rules = el("tbody"), table = el("table", {}, headOf(["Rule", "Tokens", "True bits", "Model bits", "Regret"], 1), rules);
  const past = el("table", { class: "look-grid" }), pastTitle = el("h3", {}), pastPart = el("div", {}, pastTitle, scrolling("Regret per rule on validation stories", past), el("p", { class: "faint" }));
  const element = card("Model and truth", el("p", { class: "faint" }, "The grammar of the built-in stories gives each token its true probability. Regret: the bits that the model loses against it, summed over the tokens of a rule."),
    scrolling("Regret per rule of the grammar", table), pastPart);
  const ruleName = ({ group, rule }) => (rule === group ? group : `${group}: ${rule}`);
  return {
    element,
    show({ truth, regrets }) {
      element.hidden = !truth && !regrets;
      table.parentElement.hidden = !truth;
      rules.replaceChildren(...(truth?.rules ?? []).map((rule) => el("tr", {}, el("th", { scope: "row" }, ruleName(rule)),
        el("td", { class: "number" }, whole(rule.tokens)), el("td", { class: "number" }, decimal(rule.true_bits)),
        el("td", { class: "number" }, decimal(rule.model_bits)), el("td", { class: "number" }, signed(rule.regret, 2)))));
      pastPart.hidden = !regrets;
      if (!regrets) return;
      pastTitle.textContent = regrets.points.length > 1 ? "Over training" : "On validation stories";
      past.replaceChildren(
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Bits per token"), ...regrets.points.map(({ step }) => el("th", { scope: "col" }, `step ${whole(step)}`)))),
        el("tbody", {}, ...regrets.points[0].rules.map((rule, i) => el("tr", {}, el("th", { scope: "row" }, ruleName(rule)),
          ...regrets.points.map((point) => {
            const each = point.rules[i].tokens ? point.rules[i].regret / point.rules[i].tokens : null;
            return el("td", { class: "number", share: each === null ? 0 : Math.round(Math.min(1, Math.max(0, each / 4)) * 100) }, decimal(each));
          })))));
      const beginnings = regrets.tokens ? `the first ${whole(regrets.tokens)} tokens of ` : "";
      pastPart.lastChild.textContent = `On ${beginnings}${regrets.stories} validation stories.`;
    },
  };
}

/** A text that the model writes, with its speed. */
export function createWriter(act) {
  const text = el("p", { class: "look-written", "aria-live": "off" }), speed = el("p", { class: "faint", role: "status" });
  const start = el("button", { type: "button", class: "button primary", onclick: () => act.write() }, "Generate");
  const stop = el("button", { type: "button", class: "button", hidden: true, onclick: () => act.stop() }, "Stop");
  const element = card("Text", el("p", { class: "look-actions" }, start, stop), text, speed);
  return {
    element,
    begin(prompt) {
      text.replaceChildren(el("span", { class: "faint" }, prompt));
      speed.textContent = "";
      start.hidden = true;
      stop.hidden = false;
    },
    add: (piece) => text.append(piece),
    end(last, message) {
      start.hidden = false;
      stop.hidden = true;
      const perSecond = speedOf(last);
      const facts = [last.tokens === null ? null : counted(last.tokens), perSecond && `${whole(Math.round(perSecond))} tokens/s`];
      speed.textContent = message ?? facts.filter((fact) => fact !== null).join(", ");
    },
  };
}

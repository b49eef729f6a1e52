// Where the inspector's numbers come from: the model inside the page (FileSource), or a server (ServerSource).
//
// Both have: run; chats, whether prompts are messages to answer; look(request, stopped) -> LookData; scores() -> Scores or null; history() -> HistoryData or null;
// truth(request) -> TruthData or null; regrets() -> RegretHistory or null; and generate(request, stopped), which yields
// pieces {text, tokens, seconds}: the number of tokens so far, null where it is not known, and the time from the first of
// them to the newest. Types: positron/inspection/lookdata.py, with one addition: in a focus whose logits are null the page
// knows only the candidates. The result of look is null if it was stopped.

import { distribution, draw, Random } from "./sampling.js";
import { focusOf, look, pause, promptIds } from "./look.js";
import { Stream } from "./tokenizer.js";

const AT_THE_END = "with the weights of the best checkpoint only: move the history to its end";

/** Return the tokens per second of a written text without the time that its prompt took; null for fewer than two tokens. */
export const speedOf = ({ tokens, seconds }) => (tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null);

/** Measure the time of a text from its first token on. */
class Stopwatch {
  /** Note that a token is there, and return the seconds since the first one. */
  lap() {
    const now = performance.now();
    this.began ??= now;
    return (now - this.began) / 1000;
  }
}

/** The model inside the page. `written`: called with the last piece of each text. `stored`: what positron/inspection/html_file.py computed when it wrote the file. */
export class FileSource {
  constructor(model, tokenizer, stored, written = () => {}) {
    Object.assign(this, { model, tokenizer, stored, written });
    [this.run, this.chats] = [stored.run, stored.chats];
    this.reads = new Map(); // the last results of look, which answer for other positions
    this.turn = Promise.resolve(); // the model computes one thing at a time
  }

  /** Run `task` when the tasks before it have ended. */
  alone(task) {
    const result = this.turn.then(task);
    this.turn = result.catch(() => {});
    return result;
  }

  isEarlier({ step }) {
    return step !== null && step !== undefined && step !== this.stored.step;
  }

  async look(request, stopped = () => false) {
    if (this.isEarlier(request)) return this.storedLook(this.stored.history.find(({ step }) => step === request.step), request);
    return this.alone(async () => {
      const read = await this.read(request, stopped);
      if (read === null) return null;
      const ablations = request.ablations ?? [];
      let ablation = null;
      if (ablations.length) {
        const whole = await this.read({ ...request, ablations: [] }, stopped);
        if (whole === null) return null;
        ablation = { ablations, before: whole.bits, after: read.bits };
      }
      const position = Math.min(request.focus ?? read.ids.length - 1, read.ids.length - 1);
      let continuation = null;
      if (request.continuation) {
        continuation = "";
        for await (const piece of this.write({ ...request, ...request.continuation }, stopped)) continuation += piece.text;
      }
      const { run, step, shape } = this.stored;
      return { ...read.data, run, step, shape, ablation, continuation, focus: focusOf(read.logps, position, this.tokenizer), scores: null };
    });
  }

  /** Return the kept look of an earlier step, whose weights the file does not have: of the stored prompt, nothing ablated. */
  storedLook(kept, { prompt, ablations = [], focus }) {
    if (prompt !== this.stored.prompt) {
      throw new Error("The file holds earlier steps for its own prompt only: choose “Its own prompt”.");
    }
    if (ablations.length) throw new Error(`Parts can be switched off ${AT_THE_END}.`);
    if (focus === null || focus === undefined || focus === kept.focus.position) return kept;
    return { ...kept, focus: { position: focus, top: kept.next[focus].top, logits: null } };
  }

  async read(request, stopped) {
    const key = JSON.stringify([request.prompt, request.ablations ?? []]);
    if (!this.reads.has(key)) {
      const read = await look(this.model, this.tokenizer, { ...request, chats: this.chats, attention: null }, stopped);
      if (read === null) return null;
      if (this.reads.size >= 3) this.reads.delete(this.reads.keys().next().value);
      this.reads.set(key, read);
    }
    return this.reads.get(key);
  }

  async scores() {
    return this.stored.scores;
  }

  async history() {
    const { run, step, history } = this.stored;
    return history.length ? { run, best: step, points: history.map(({ point }) => point) } : null;
  }

  async truth({ prompt, step }) {
    return prompt === this.stored.prompt && !this.isEarlier({ step }) ? this.stored.truth : null;
  }

  async regrets() {
    return this.stored.regrets;
  }

  async *generate(request, stopped = () => false) {
    if (this.isEarlier(request)) throw new Error(`The file writes ${AT_THE_END}.`);
    let free;
    const before = this.turn;
    this.turn = new Promise((resolve) => (free = resolve));
    await before;
    try {
      yield* this.write(request, stopped);
    } finally {
      free();
    }
  }

  async *write({ prompt, ablations = [], max_tokens = 200, seed = 0, ...sampling }, stopped) {
    const { model, tokenizer } = this, random = new Random(seed);
    const ids = promptIds(model, tokenizer, prompt, this.chats), ends = new Set(this.stored.ends);
    const stream = new Stream(tokenizer, ids);
    model.reset();
    model.ablate(ablations);
    let drawn = performance.now();
    const rest = async () => {
      if (performance.now() - drawn < 30) return;
      await pause();
      drawn = performance.now();
    };
    let logits = null;
    for (const [i, id] of ids.entries()) {
      logits = model.step(id, null, i === ids.length - 1);
      await rest();
      if (stopped()) return;
    }
    const watch = new Stopwatch();
    let tokens = 0, seconds = 0;
    while (tokens < max_tokens && !stopped()) {
      const id = draw(distribution(logits, sampling), random);
      if (ends.has(id)) break;
      [tokens, seconds] = [tokens + 1, watch.lap()];
      yield { text: stream.push(id), tokens, seconds };
      if (tokens < max_tokens) logits = model.continue(id);
      await rest();
    }
    const last = { text: stream.end(), tokens, seconds };
    this.written(last);
    yield last;
  }
}

/** The server of `positron serve`. `run`, `chats`: of /v1/models; `key`: of --api-key, or null. */
export class ServerSource {
  constructor(run, { base = "", key = null, chats = false } = {}) {
    Object.assign(this, { run, base, key, chats });
  }

  async ask(path, body) {
    const headers = this.key ? { Authorization: `Bearer ${this.key}` } : {};
    const options = body ? { method: "POST", body: JSON.stringify(body) } : {};
    if (body) headers["Content-Type"] = "application/json";
    const response = await fetch(this.base + path, { ...options, headers });
    if (response.ok) return response;
    const answer = await response.json().catch(() => null);
    const error = new Error(answer?.error?.message ?? `The server answered ${response.status}.`);
    error.status = response.status;
    throw error;
  }

  async json(path, body) {
    return (await this.ask(path, body)).json();
  }

  /** Return null for what this run does not have. */
  async ifAny(path, body) {
    try {
      return await this.json(path, body);
    } catch (error) {
      if (error.status >= 400 && error.status < 500) return null;
      throw error;
    }
  }

  async look(request, stopped = () => false) {
    const data = await this.json("/api/look", { ...request, run: this.run });
    return stopped() ? null : data;
  }

  async scores() {
    return (await this.json("/api/look", { run: this.run, prompt: "", attention: [], scores: true })).scores;
  }

  async history() {
    const history = await this.ifAny(`/api/history?run=${encodeURIComponent(this.run)}`);
    return history?.points.length ? history : null;
  }

  async truth({ prompt, step }) {
    return this.ifAny("/api/truth", { run: this.run, prompt, step, top: 20 });
  }

  async regrets() {
    const regrets = await this.ifAny(`/api/truth?run=${encodeURIComponent(this.run)}`);
    return regrets?.points.length ? regrets : null;
  }

  async *generate({ prompt, step = null, ablations = [], ...settings }, stopped = () => false) {
    if (ablations.length || step !== null) {
      const data = await this.look({ prompt, step, ablations, attention: [], continuation: settings }, stopped);
      if (data) yield { text: data.continuation, tokens: null, seconds: null };
      return;
    }
    const given = Object.fromEntries(Object.entries(settings).filter(([, value]) => value !== null));
    const asked = this.chats ? { messages: [{ role: "user", content: prompt }] } : { prompt };
    const response = await this.ask(this.chats ? "/v1/chat/completions" : "/v1/completions", { model: this.run, ...asked, stream: true, stream_options: { include_usage: true }, ...given });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const watch = new Stopwatch();
    let rest = "", seconds = 0;
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done || stopped()) return;
        const events = (rest + value).split("\n\n");
        rest = events.pop();
        for (const event of events) {
          const data = event.replace(/^data: ?/, "");
          if (data === "[DONE]") return;
          const chunk = JSON.parse(data);
          if (chunk.error) throw new Error(chunk.error.message);
          const [choice] = chunk.choices;
          if (!choice) {
            yield { text: "", tokens: chunk.usage.completion_tokens, seconds };
          } else if (!choice.delta?.role) { // the beginning of an answer has no text
            seconds = watch.lap();
            yield { text: (this.chats ? choice.delta.content : choice.text) ?? "", tokens: null, seconds };
          }
        }
      }
    } finally {
      await reader.cancel(); // the server frees the slot
    }
  }
}

// The tab Look inside: the inspector for a run of this server. The run is kept in the address.

import { mount } from "./inspector.js";
import { ServerSource } from "./sources.js";

const PROMPT = "Once upon a time", MESSAGE = "Tell me a story about Lily.";

const $ = (id) => document.getElementById(id);
const key = sessionStorage.getItem("api-key"); // entered in the tab Chat, if the server needs one
let shown = null;
let chats; // run -> whether it answers messages

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

function open(run) {
  shown?.close();
  $("run").value = run;
  history.replaceState(null, "", `?${new URLSearchParams({ run })}`);
  $("inspector").replaceChildren();
  shown = mount($("inspector"), new ServerSource(run, { key, chats: chats.get(run) }), { prompt: chats.get(run) ? MESSAGE : PROMPT });
}

async function start() {
  const response = await fetch("/v1/models", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (response.status === 401) throw new Error("This server needs its API key: enter it in the tab Chat.");
  chats = new Map((await response.json()).data.map((model) => [model.id, model.chats]));
  const names = [...chats.keys()];
  if (!names.length) throw new Error("There is no trained run yet: train one, then reload this page.");
  $("run").append(...names.map((name) => new Option(name, name)));
  $("run").addEventListener("change", () => open($("run").value));
  $("choice").hidden = false;
  const asked = new URLSearchParams(location.search).get("run");
  open(names.includes(asked) ? asked : names[0]);
}

start().catch((error) => trouble(error instanceof TypeError ? "The server does not answer. If it was stopped, start it again." : error.message));

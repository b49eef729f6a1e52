#!/usr/bin/env bash
# Install Positron in a fresh checkout, train a small model, and show three samples: scripts/bootstrap_tiny_llm.sh [SETTINGS]
# SETTINGS are settings of positron.train. The text is the first 50 MB of TinyStories (data.max_mb=null reads all), or the
# built-in stories if the Hugging Face hub (or HF_ENDPOINT) does not answer within 10 seconds. Takes minutes on two CPU cores.
# If it is interrupted, the same command continues.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then sed -n '2,5s/^# //p' "$0"; exit 0; fi
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -d outputs ] || cd "$home"
make --silent -C "$home" install >&2
python=$home/.venv/bin/python
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}

name=tiny_llm
for setting in "$@"; do if [[ $setting = name=* ]]; then name=${setting#name=}; fi; done
hub=${HF_ENDPOINT:-https://huggingface.co}
if [ -d "outputs/$name" ]; then
  # a run keeps the text that it was started with
  text=$("$python" -c "import json, sys; print(json.load(open(sys.argv[1]))['data']['source'])" "outputs/$name/config.json" 2>/dev/null || echo stories)
elif "$python" -c "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10)" "$hub/api/datasets/roneneldan/TinyStories" 2>/dev/null; then
  text=hub
else
  echo "$hub does not answer: training on the built-in stories instead of TinyStories" >&2
  text=stories
fi
data=(data=stories)
if [ "$text" = hub ]; then data=(data=tinystories data.max_mb=50); fi
"$python" -m positron.train experiment=quickstart name="$name" "${data[@]}" "$@"
exec "$python" -m positron.generate "Once upon a time" --run "$name" --num-samples 3

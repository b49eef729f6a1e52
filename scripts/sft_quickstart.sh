#!/usr/bin/env bash
# Teach a model to answer: scripts/sft_quickstart.sh [RUN] [settings of positron.sft]
# Fine-tunes RUN (default: quickstart, which is trained first if there is none) on requests for stories, and shows one
# answer. About eight minutes on two CPU cores, pretraining included. Run it again and it continues.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then sed -n '2,4s/^# //p' "$0"; exit 0; fi
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$home/.venv/bin/python" ]; then python=$home/.venv/bin/python; else python=python3; fi
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
[ -d outputs ] || cd "$home"

run=quickstart
case ${1:-} in *=* | "") ;; *) run=$1; shift ;; esac
if [ "$run" = quickstart ]; then "$python" -m positron.train experiment=quickstart; fi
"$python" -m positron.sft "init_from=$run" experiment=story_instruct "$@"
exec "$python" -m positron.chat "Tell me a story about Tom, who loses a kite in the park."

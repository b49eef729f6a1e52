#!/usr/bin/env bash
# Fine-tune RUN on requests for stories, and show one answer: scripts/sft_quickstart.sh [RUN] [SETTINGS]
# SETTINGS are settings of positron.sft. The default of RUN is quickstart, which is trained first if it does not exist. Takes
# about eight minutes on two CPU cores, including pretraining. If it is interrupted, the same command continues.
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

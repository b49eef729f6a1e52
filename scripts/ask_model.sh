#!/usr/bin/env bash
# Talk to the run trained last: scripts/ask_model.sh, or one question: scripts/ask_model.sh "Tell me a story about Tom."
# Options of `python -m positron.chat` may follow (--run, --temperature, ...; --help lists them). From any directory: it
# looks for outputs/ there, and else in this repository.
set -euo pipefail
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$home/.venv/bin/python" ]; then python=$home/.venv/bin/python; else python=python3; fi
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
[ -d outputs ] || cd "$home"
exec "$python" -m positron.chat "$@"

#!/usr/bin/env bash
# Chat with the run that was trained last: scripts/ask_model.sh
# Ask a single question: scripts/ask_model.sh "Tell me a story about Tom."
# All options of `positron chat` may follow (--run, --temperature, ...; --help lists them). The script looks for
# outputs/ in the current directory, and otherwise in this repository.
set -euo pipefail
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$home/.venv/bin/python" ]; then python=$home/.venv/bin/python; else python=python3; fi
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
[ -d outputs ] || cd "$home"
exec "$python" -m positron.chat "$@"

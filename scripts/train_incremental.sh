#!/usr/bin/env bash
# Train a run in several parts: scripts/train_incremental.sh [STEPS] [--yes] [SETTINGS]
# After every STEPS optimizer steps (default 500), training stops, shows its loss and a sample, and asks whether to continue;
# --yes continues without asking. The learning rate follows the planned number of steps (train.max_steps), so the result is
# the same, bit for bit, as without stops. SETTINGS are settings of positron.train (default: experiment=quickstart
# name=incremental). If it is interrupted, the same command continues.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then sed -n '2,6s/^# //p' "$0"; exit 0; fi
home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [ -x "$home/.venv/bin/python" ]; then python=$home/.venv/bin/python; else python=python3; fi
export PYTHONPATH=$home${PYTHONPATH:+:$PYTHONPATH}
[ -d outputs ] || cd "$home"

steps=500 ask=yes name=incremental recipe=(experiment=quickstart) settings=()
for word in "$@"; do
  case $word in
    --yes) ask=no ;;
    name=*) name=${word#name=} ;;
    *=*) settings+=("$word"); case $word in experiment=* | model=*) recipe=() ;; esac ;;
    *[!0-9]* | 0 | "") echo "positron: $word is not a number of steps and not a setting (KEY=VALUE): see --help" >&2; exit 2 ;;
    *) steps=$word ;;
  esac
done

fact() { "$python" -c "import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])" "outputs/$name/run.json" "$1"; }

done=0
if [ -f "outputs/$name/run.json" ]; then done=$(fact step); fi
while :; do
  "$python" -m positron.train ${recipe[@]+"${recipe[@]}"} ${settings[@]+"${settings[@]}"} "name=$name" "train.stop_at=$((done / steps * steps + steps))"
  done=$(fact step)
  if [ "$(fact status)" = finished ]; then exit 0; fi
  if [ "$ask" = yes ]; then
    read -r -p "Continue for another $steps steps? [Y/n] " answer || answer=n
    case $answer in [nN]*) echo "give the same command again to continue later"; exit 0 ;; esac
  fi
done

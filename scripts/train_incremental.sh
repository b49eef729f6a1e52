#!/usr/bin/env bash
# Train in chunks of one run: scripts/train_incremental.sh [STEPS] [--yes] [name=... and other settings of positron.train]
# After every STEPS optimizer steps (default 500): how good it is, what it writes, and a question whether to continue; --yes
# continues without asking. The learning rate follows the whole horizon (train.max_steps), so the chunks together are the same run,
# bit for bit, as one in one piece. Default: experiment=quickstart name=incremental. Run it again and it continues.
set -euo pipefail
if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then sed -n '2,5s/^# //p' "$0"; exit 0; fi
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
    *[!0-9]* | 0 | "") echo "positron: $word is no number of steps, nor a setting: see --help" >&2; exit 2 ;;
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
    read -r -p "Go on for another $steps steps? [Y/n] " answer || answer=n
    case $answer in [nN]*) echo "the same command goes on later"; exit 0 ;; esac
  fi
done

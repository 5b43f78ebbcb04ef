#!/usr/bin/env bash
# The Python side on a GPU machine that has no network: the wheels are installed from files into a folder of their own,
# then `pytest -m gpu`, `amk eval`, 256-token generations against the oracle's, and the times of a load and of a plain
# decode loop run. Anything that fails, or no GPU, is a failure of this script; each step has a limit.
#
#   tests/gpu/python_on_gpu.sh WHEELS [CHECKPOINTS] [RESULTS] [LOAD]
#
# WHEELS holds the wheels of amk, cffi, pycparser and pytest for this Python (tests/gpu/pack.sh makes all of this).
# CHECKPOINTS is what gpu_checkpoints.py wrote (default: made by the tests, which needs transformers, and no
# generations). RESULTS gets the JSON files (default: a temporary folder). LOAD is a full-size checkpoint, made where it
# does not exist (default: no load is timed).
set -euo pipefail
wheels=$(realpath "$1")
checkpoints=${2:+$(realpath "$2")}
results=$(realpath "${3:-$(mktemp -d)}")
load=${4:+$(realpath -m "$4")}
cd "$(dirname "$0")/../.."

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
export PYTHONPATH=$site PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 AMK_REQUIRE_GPU=1
export AMK_CACHE_DIR="$site/cache"
if [ -n "$checkpoints" ]; then export AMK_TEST_CHECKPOINTS=$checkpoints; fi

status=0
# step SECONDS NAME COMMAND...: its end is reported, and a failure is remembered.
step() {
  local limit=$1 name=$2 start=$SECONDS code=0
  shift 2
  timeout -k 5 "$limit" "$@" || code=$?
  if [ $code = 0 ]; then
    echo "ok   $name ($((SECONDS - start)) s)"
  else
    echo "FAIL $name: exit status $code$([ $code = 124 ] && echo " (no end after $limit s)") ($((SECONDS - start)) s)"
    status=1
  fi
}
step 60 doctor python3 -m amk doctor
step 480 tests python3 -m pytest -q -m gpu -p no:cacheprovider --durations=5 tests/python/test_gpu.py \
  tests/python/test_gpu_tasks.py tests/python/test_gdn_gpu.py

for task in $(python3 -m amk bench kernel --list --json | python3 -c 'import json, sys
for task in json.load(sys.stdin)["tasks"]: print(task["name"])'); do
  step 300 "bench kernel $task, quick" python3 -m amk bench kernel "$task" --stage quick
done

models=(toy toy-2L toy-gqa toy-qwen3)
if [ -n "$checkpoints" ]; then models+=("$checkpoints"/*-bf16); fi
for model in "${models[@]}"; do
  step 60 "eval $(basename "$model")" sh -c 'python3 -m amk eval "$1" --device cuda:0 --quiet --json >"$2"' \
    sh "$model" "$site/one.json"
  python3 -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1]))))' "$site/one.json" \
    >>"$site/all.jsonl" || status=1
done
python3 - "$site/all.jsonl" "$results/python_on_gpu.json" <<'PY' || status=1
import json, sys
found = [json.loads(line) for line in open(sys.argv[1])]
json.dump(found, open(sys.argv[2], "w"), indent=1)
for v in found:
    error = v.get("error", {}).get("message", "")
    print(v.get("model"), v["status"], v.get("latency_kind"), v.get("latency_us"), v.get("notes") or error)
PY

if [ -n "$checkpoints" ]; then
  step 90 "generations of 256 tokens" sh -c 'python3 benchmarks/generations.py "$1" --device cuda:0 >"$2"' \
    sh "$checkpoints" "$results/generations.json"
  cat "$results/generations.json"
fi
if [ -n "$load" ]; then
  step 240 "load to first token" sh -c 'python3 benchmarks/load_time.py "$1" --device cuda:0 --rounds 2 >"$2"' \
    sh "$load" "$results/load_time.json"
  cat "$results/load_time.json"
  step 120 "host cost of a token" python3 benchmarks/host_cost.py "$load" --device cuda:0 \
    --output "$results/host_cost.json"
  step 120 "time to the first token of a prompt" python3 benchmarks/prompt_time.py "$load" --device cuda:0 \
    --output "$results/prompt_time.json"
fi
echo "results in $results; $([ $status = 0 ] && echo all passed || echo FAILED)"
exit $status

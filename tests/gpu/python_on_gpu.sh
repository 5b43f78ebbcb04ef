#!/usr/bin/env bash
# The Python side on a GPU machine that has no network: the wheel is installed from files, then `pytest -m gpu` and
# `amk eval` run. Anything that fails, or no GPU, is a failure of this script.
#
#   tests/gpu/python_on_gpu.sh WHEELS [CHECKPOINTS] [RESULTS]
#
# WHEELS holds the wheels of amk and cffi (and pycparser) for this Python. CHECKPOINTS is what gpu_checkpoints.py wrote
# (default: made here, which needs transformers). RESULTS gets one JSON file (default: a temporary folder).
# To prepare, where there is a network:  pip wheel . --no-deps -w WHEELS && pip download --no-deps -d WHEELS cffi pycparser
set -euo pipefail
wheels=$(realpath "$1")
checkpoints=${2:+$(realpath "$2")}
results=$(realpath "${3:-$(mktemp -d)}")
cd "$(dirname "$0")/../.."

site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
python3 -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
export PYTHONPATH=$site PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 AMK_REQUIRE_GPU=1
export AMK_CACHE_DIR="$site/cache"
if [ -n "$checkpoints" ]; then export AMK_TEST_CHECKPOINTS=$checkpoints; fi

python3 -m amk doctor
status=0
python3 -m pytest -q -m gpu -p no:cacheprovider --durations=5 tests/python/test_gpu.py || status=1

models=(toy toy-2L toy-gqa toy-qwen3)
if [ -n "$checkpoints" ]; then models+=("$checkpoints"/*-bf16); fi
for model in "${models[@]}"; do
  python3 -m amk eval "$model" --device cuda --quiet --json >"$site/one.json" || status=1
  python3 -c 'import json, sys; print(json.dumps(json.load(open(sys.argv[1]))))' "$site/one.json" >>"$site/all.jsonl"
done
python3 - "$site/all.jsonl" "$results/python_on_gpu.json" <<'PY'
import json, sys
found = [json.loads(line) for line in open(sys.argv[1])]
json.dump(found, open(sys.argv[2], "w"), indent=1)
for v in found:
    error = v.get("error", {}).get("message", "")
    print(v.get("model"), v["status"], v.get("latency_kind"), v.get("latency_us"), v.get("notes") or error)
PY
echo "results in $results; $([ $status = 0 ] && echo all passed || echo FAILED)"
exit $status

#!/usr/bin/env bash
# Everything that a GPU machine without network or compiler needs to redo the GPU figures, as one file.
#
#   tests/gpu/pack.sh OUT.tar.xz [CMAKE OPTIONS, as -DAMK_CUDA_ARCHITECTURES=90a]
#
# Needs nvcc, a network, and a python with transformers (PYTHON, default python3) for the small checkpoints. The wheels
# are for the Python of the GPU machine: GPU_PYTHON, default 3.12. The programs are built in BUILD (default build-gpu).
set -euo pipefail
out=$(realpath -m "$1")
shift
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
build=${BUILD:-build-gpu}
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/programs" "$stage/wheels"

cmake -S . -B "$build" -DAMK_CUDA=ON "$@"
cmake --build "$build" --target gpu_tests --parallel
for program in "$build"/tests/gpu/gpu_*; do
  if [ -f "$program" ] && [ -x "$program" ]; then strip -o "$stage/programs/$(basename "$program")" "$program"; fi
done

settings=(-C cmake.define.AMK_CUDA=ON)
for option in "$@"; do settings+=(-C "cmake.define.${option#-D}"); done
"$python" -m pip wheel . --quiet --no-deps "${settings[@]}" -w "$stage/wheels"
"$python" -m pip download --quiet --no-deps --only-binary :all: --python-version "${GPU_PYTHON:-3.12}" \
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --platform any -d "$stage/wheels" \
  cffi pycparser pytest iniconfig pluggy packaging pygments

"$python" tests/python/gpu_checkpoints.py "$stage/checkpoints" # imports the amk installed for $python

XZ_OPT=-9 tar -C "$stage" -cJf "$out" .
du -h "$out"

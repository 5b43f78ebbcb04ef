#!/usr/bin/env bash
# Builds and installs libamk into a scratch prefix, then builds the two programs beside this file against it: through
# find_package, through pkg-config (where it is installed), and through the CMake files of an installed Python package
# (where `python3 -c "import amk"` works).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cmake -S "$here/../.." -B "$scratch/build" -DAMK_CUDA=OFF -DAMK_BUILD_TESTS=OFF -DCMAKE_INSTALL_PREFIX="$scratch/prefix" >/dev/null
cmake --build "$scratch/build" -j2 >/dev/null
cmake --install "$scratch/build" >/dev/null

cmake -S "$here" -B "$scratch/consumer" -DCMAKE_PREFIX_PATH="$scratch/prefix" >/dev/null
cmake --build "$scratch/consumer" >/dev/null
first=$("$scratch/consumer/consumer_c")
"$scratch/consumer/consumer_cxx"
echo "find_package: $first"

if command -v pkg-config >/dev/null; then
  export PKG_CONFIG_PATH=$(dirname "$(find "$scratch/prefix" -name amk.pc)")
  # shellcheck disable=SC2046
  cc -std=c99 "$here/consumer.c" -o "$scratch/by_pkg_config" $(pkg-config --cflags --libs amk)
  second=$(LD_LIBRARY_PATH=$(pkg-config --variable=libdir amk) "$scratch/by_pkg_config")
  [ "$first" = "$second" ] || { echo "pkg-config build printed $second"; exit 1; }
  echo "pkg-config: the same"
fi

if package=$(cd / && python3 -c 'from importlib.resources import files; print(files("amk"))' 2>/dev/null); then
  cmake -S "$here" -B "$scratch/from_package" -Damk_DIR="$package/cmake" >/dev/null
  cmake --build "$scratch/from_package" >/dev/null
  "$scratch/from_package/consumer_c" >/dev/null
  "$scratch/from_package/consumer_cxx" >/dev/null
  echo "the Python package's CMake files: both programs run"
fi

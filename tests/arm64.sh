#!/bin/bash
# Compiles everything for arm64, and runs what needs no PyTorch of that kind, the kernels themselves, in an emulator.
set -euo pipefail
torch=$(.venv/bin/python -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parent)")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
compile="aarch64-linux-gnu-g++ -std=c++20 -O1 -fno-math-errno -fwrapv -fvisibility=hidden"
for source in $(ls csrc/*.cpp | grep -v target_); do
  $compile -fsyntax-only -DTORCH_TARGET_VERSION=0x020d000000000000 -I"$torch/include" -I"$torch/include/torch/csrc/api/include" "$source"
done
$compile -static tests/kernels.cpp csrc/target_plain.cpp -o "$folder/kernels"
qemu-aarch64 "$folder/kernels"

#!/bin/bash
# Builds the kernels with AddressSanitizer and UBSan (-O1, or it takes a quarter of an hour) in a folder of their own and runs their
# tests on them with vectors of every width. Masked loads it does not see: for those test_fuzz_kernels.py has forbidden memory.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
torch=$($python -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parent)")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r src/normwise "$folder/" && rm -f "$folder"/normwise/*.so
flags="-fwrapv -fPIC -std=c++20 -O1 -fno-math-errno -fvisibility=hidden -DTORCH_TARGET_VERSION=0x020d000000000000"
flags+=" -fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=undefined -fno-omit-frame-pointer -I$torch/include -I$torch/include/torch/csrc/api/include"
for source in csrc/*.cpp; do g++ $flags -c "$source" -o "$folder/$(basename "$source").o"; done
g++ -shared -fsanitize=address,undefined "$folder"/*.o -L"$torch/lib" -ltorch_cpu -o "$folder/normwise/_C.abi3.so"
# the C++ library too: without it AddressSanitizer does not find what throws an exception, and stops
libraries="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so) $(gcc -print-file-name=libstdc++.so.6)"
for width in 64 32 16; do
  # Python and PyTorch keep memory to the end on purpose: leaks are not looked for
  NORMWISE_VECTOR_BYTES=$width LD_PRELOAD="$libraries" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH="$folder" \
    $python -m pytest -q --timeout 1800 tests/test_kernels.py tests/test_fuzz_kernels.py tests/test_lstm_kernel.py tests/test_remember.py tests/test_mixture.py -k "not opcheck and not narrower"
done

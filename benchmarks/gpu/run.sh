#!/usr/bin/env bash
# Everything that needs a GPU, in two commands of at most ten minutes each, without a network:
#   run.sh           builds for this GPU, tests, checks for bad accesses and races, times each kernel
#   run.sh engines   builds, and times the engines beside the plain prediction: compiling takes most of the time
# Figures belong into benchmarks/results/<gpu>/{kernels,engines}.json; everything is left in $OUT where that is set.
#
# Needs: Python 3.10 to 3.12 with torch 2.10 to 2.13 for CUDA, its Triton (3.6 or 3.7), pytest, pytest-benchmark,
# hypothesis, scikit-build-core, setuptools and pybind11; nvcc, CMake, Ninja. pytest-xdist and compute-sanitizer are used
# where they are.
set -uo pipefail
WHAT=${1:-kernels}
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-python3}
OUT=${OUT:-$ROOT/build/gpu}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$OUT" # not the source tree: Python would import the package from there
failed=()

step() { # step NAME SECONDS COMMAND...: runs it, keeps its log, remembers its failure
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  echo "== $name"
  timeout "$seconds" "$@" >"$OUT/$name.log" 2>&1 || failed+=("$name")
  tail -n 4 "$OUT/$name.log"
  echo "== $name took $((SECONDS - start)) s"
}

capability=$($PYTHON -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
export GAIA_FAST_CUDA=on GAIA_FAST_CUDA_ARCHITECTURES="$capability-real" OMP_WAIT_POLICY=PASSIVE

# Into a folder of its own, so that neither the source tree nor another installation is what is tested.
step build 120 "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps --target "$OUT/package" --upgrade "$ROOT"
export PYTHONPATH="$OUT/package"

finish() {
  rm -rf "$OUT/package"
  if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
  fi
  echo "everything passed in $SECONDS s"
  exit 0
}

if [[ $WHAT == engines ]]; then
  step engines 460 "$PYTHON" "$ROOT/benchmarks/gpu/engines.py" --out "$OUT/engines.json" --seconds 430
  cat "$OUT/engines.log"
  finish
fi

pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -c "$ROOT/pyproject.toml" --rootdir "$ROOT")
ops="$ROOT/tests/ops"

workers=()
"$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n 8)
step tests 240 "${pytest[@]}" "${workers[@]}" "$ops" "$ROOT/tests/gpu" "$ROOT/tests/test_backends.py" -k "cuda or gpu"

if command -v compute-sanitizer >/dev/null; then
  small=("$ops/test_tiling.py" "$ops/test_frobenius.py" -k "cuda and (partial or by_hand or padded_matrix_itself)")
  for tool in memcheck racecheck; do
    step "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 3 --target-processes all \
      "${pytest[@]}" -x "${small[@]}"
  done
else
  echo "== no compute-sanitizer on the path: memcheck and racecheck were NOT run"
  failed+=(compute-sanitizer)
fi

step kernels 240 "$PYTHON" "$ROOT/benchmarks/gpu/kernels.py" --out "$OUT/kernels.json"
cat "$OUT/kernels.log"
finish

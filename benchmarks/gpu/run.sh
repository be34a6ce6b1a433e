#!/usr/bin/env bash
# Everything that needs a GPU, in two commands of at most ten minutes each, without a network:
#   run.sh           builds for this GPU, tests, times each kernel, checks for bad accesses and races
#   run.sh engines   builds, and times the engines beside the plain prediction: compiling takes most of the time
# Figures belong into benchmarks/results/<gpu>/{kernels,engines}.json; everything is left in $OUT where that is set. COMMIT
# names the commit where there is no git. LIMIT is for how many seconds a command may go on. WHEEL, built for this GPU before,
# is installed instead of building.
#
# Needs: Python 3.10 to 3.12 with torch 2.10 to 2.13 for CUDA, its Triton (3.6 or 3.7), pytest, pytest-benchmark,
# hypothesis, scikit-build-core, setuptools and pybind11; nvcc, CMake, Ninja. pytest-xdist and compute-sanitizer are used
# where they are.
set -uo pipefail
WHAT=${1:-kernels}
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-python3}
OUT=${OUT:-$ROOT/build/gpu}
LIMIT=${LIMIT:-585}
SOURCE=${WHEEL:-$ROOT}
PATH=$PATH:/usr/local/cuda/bin
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
cd "$OUT" # not the source tree: Python would import the package from there
failed=()

PACKAGE=$(mktemp -d)
trap 'rm -rf "$PACKAGE"' EXIT

left() { echo $((LIMIT - SECONDS)); }

step() { # step NAME SECONDS COMMAND...: runs it, for as long as the limit leaves, keeps its log, remembers its failure
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  ((seconds > $(left))) && seconds=$(left)
  if ((seconds < 20)); then
    echo "== $name left out for want of time"
    failed+=("$name")
    return
  fi
  echo "== $name"
  timeout --kill-after=5 "$seconds" "$@" >"$OUT/$name.log" 2>&1 || failed+=("$name")
  tail -n 4 "$OUT/$name.log"
  echo "== $name took $((SECONDS - start)) s"
}

finish() {
  if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
  fi
  echo "everything passed in $SECONDS s"
  exit 0
}

capability=$($PYTHON -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
export GAIA_FAST_CUDA=on GAIA_FAST_CUDA_ARCHITECTURES="$capability-real" OMP_WAIT_POLICY=PASSIVE PYTHONUNBUFFERED=1

# Into a folder of its own, so that neither the source tree nor another installation is what is tested.
step build 150 "$PYTHON" -m pip install --quiet --no-build-isolation --no-deps --target "$PACKAGE" --upgrade "$SOURCE"
((${#failed[@]})) && finish
export PYTHONPATH="$PACKAGE"

if [[ $WHAT == engines ]]; then
  seconds=$(($(left) - 10))
  step engines "$seconds" "$PYTHON" "$ROOT/benchmarks/gpu/engines.py" --out "$OUT/engines.json" --seconds $((seconds - 15))
  cat "$OUT/engines.log"
  finish
fi

export PYTHONPATH="$PACKAGE:$ROOT/benchmarks/gpu"
pytest=("$PYTHON" -m pytest -q -p no:cacheprovider -p at_once -c "$ROOT/pyproject.toml" --rootdir "$ROOT")
ops="$ROOT/tests/ops"

# A worker for each processor: most of the time goes into Triton's compiler. Inductor brings no processes of its own.
workers=()
"$PYTHON" -c 'import xdist' 2>/dev/null && workers=(-n "$(nproc)")
TORCHINDUCTOR_COMPILE_THREADS=1 step tests 270 "${pytest[@]}" "${workers[@]}" --durations=15 \
  "$ROOT/tests/gpu" "$ops" "$ROOT/tests/test_backends.py" -k "cuda or gpu or library"

step kernels 220 "$PYTHON" "$ROOT/benchmarks/gpu/kernels.py" --out "$OUT/kernels.json" --seconds 200

if command -v compute-sanitizer >/dev/null; then
  # Without PyTorch's cache of memory, in which an access beside a tensor meets another's.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  small=("$ops/test_tiling.py" "$ops/test_frobenius.py" "$ops/test_channel_moments.py"
    -k "(triton-cuda or cuda-cuda) and (partial or by_hand or padded_matrix_itself or (against and 168))")
  for tool in memcheck racecheck; do
    step "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 3 --target-processes all \
      "${pytest[@]}" -x "${small[@]}"
  done
else
  echo "== no compute-sanitizer on the path: memcheck and racecheck were NOT run"
  failed+=(compute-sanitizer)
fi
cat "$OUT/kernels.log"
finish

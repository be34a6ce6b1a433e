#!/usr/bin/env bash
# All that a GPU is needed for, in one command of at most ten minutes, without a network: builds for this GPU, a smoke test,
# tests, times of engines and kernels, a profiler's counters, and a look for bad accesses and races where time is left.
#   run.sh             everything
#   run.sh PART...     builds, and runs parts alone: smoke, warm, tests, engines, kernels, counters
#   run.sh sanitize    builds, and looks for bad accesses and races
# parts.py says what each part may take. Two files are left in $OUT, results.json and log.txt; the figures are put into
# benchmarks/results/<gpu>/results.json, too. COMMIT names the commit where there is no git. LIMIT is for how many seconds
# the command may go on. WHEEL, built for this GPU before, is installed instead of building.
#
# Needs: Python 3.10 to 3.12 with torch 2.10 to 2.13 for CUDA, its Triton (3.6 or 3.7), pytest, pytest-benchmark,
# hypothesis, scikit-build-core, setuptools and pybind11; nvcc, CMake, Ninja. pytest-xdist, torchvision, TensorRT, ncu and
# compute-sanitizer are used where they are.
set -uo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PYTHON=${PYTHON:-python3}
OUT=${OUT:-$ROOT/build/gpu}
LIMIT=${LIMIT:-585}
SOURCE=${WHEEL:-$ROOT}
PATH=$PATH:/usr/local/cuda/bin
for folder in /opt/nvidia/nsight-compute/*/; do
  PATH=$PATH:${folder%/}
done
COMMIT=${COMMIT:-$(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null)}
mkdir -p "$OUT" || exit 1
OUT=$(cd "$OUT" && pwd)
cd "$OUT" || exit 1 # not the source tree: Python would import the package from there

capability=$("$PYTHON" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || exit 1
export PATH COMMIT GAIA_FAST_CUDA=on GAIA_FAST_CUDA_ARCHITECTURES="$capability-real"
exec "$PYTHON" "$ROOT/benchmarks/gpu/parts.py" "$@" --out "$OUT" --source "$SOURCE" --limit "$((LIMIT - SECONDS))"

#include "launch.h"

namespace gaia::cuda {
namespace {

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) add_partials_kernel(Partials partials, int64_t blocks) {
  const int64_t row = blockIdx.x / blocks;
  const int64_t column = blockIdx.x % blocks * kThreads + threadIdx.x;
  if (column >= partials.columns) return;
  const float* const first = partials.partial + row * partials.columns + column;
  float total = 0.0f;
  for (int64_t split = 0; split < partials.splits; ++split) total += first[split * partials.stride_split];
  partials.out[row / partials.images * partials.stride_moment + row % partials.images * partials.stride_n + column] =
      total;
}

}  // namespace

std::string add_partials(const Partials& partials, int device, Stream stream) {
  const int64_t blocks = (partials.columns + kThreads - 1) / kThreads;
  return launch("add_partials", add_partials_kernel, Grid{partials.rows * blocks, kThreads}, device, stream, partials,
                blocks);
}

}  // namespace gaia::cuda

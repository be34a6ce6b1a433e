// The score: the p-norm of each image's abnormality matrix (Eq. 12), all layers in one launch.
#include <vector>

#include "norm.h"

namespace gaia::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

// The layers travel in the kernel's arguments, so nothing is copied to the device: in a small table where they are few.
// CUDA before 12.1 has room for 4 KB of arguments.
constexpr int kFewLayers = 128;
#if defined(GAIA_CUDA_EMULATED) || CUDART_VERSION >= 12010
constexpr int kMaxLayers = 1024;
#else
constexpr int kMaxLayers = 240;
#endif

template <int kLayers>
struct Table {
  int begin[kLayers];
  int width[kLayers];
  double inverse_area[kLayers];
};

struct Rows {
  const float* moments;
  int64_t stride_n;
  const float* output_component;
  double p;
  float* score;
  int layers;
};

// A block for an image, a warp for every sixteenth layer.
template <Norm N, int kLayers>
__global__ void __launch_bounds__(kThreads) frobenius_kernel(Rows rows, const __grid_constant__ Table<kLayers> table) {
  __shared__ double partial[kWarps];
  const int64_t n = blockIdx.x;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const double output = rows.output_component != nullptr ? rows.output_component[n] : 1.0;
  double total = 0.0;
  for (int layer = warp; layer < rows.layers; layer += kWarps) {
    const float* const moments = rows.moments + n * rows.stride_n + table.begin[layer];
    const double factor = table.inverse_area[layer] / output;
    const int width = table.width[layer];
#pragma unroll 4
    for (int j = lane; j < width; j += 32) {
      total = merged<N>(total, power<N>(fabs(static_cast<double>(moments[j]) * factor), rows.p));
    }
  }
  for (int distance = 16; distance > 0; distance /= 2) {
    total = merged<N>(total, __shfl_xor_sync(0xffffffffu, total, distance));
  }
  if (lane == 0) partial[warp] = total;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int other = 1; other < kWarps; ++other) total = merged<N>(total, partial[other]);
  rows.score[n] = static_cast<float>(root<N>(total, rows.p));
}

struct Span {
  int64_t begin, width;
  double inverse_area;
};

// The layers; neighbours of one area as one, where there are too many.
std::vector<Span> spans_of(const gaia_packed& packed) {
  std::vector<Span> spans;
  for (int64_t l = 0; l < packed.layers; ++l) {
    const Span next = {packed.begins[l], packed.widths[l], packed.inverse_area[l]};
    if (packed.layers > kMaxLayers && !spans.empty() && spans.back().begin + spans.back().width == next.begin &&
        spans.back().inverse_area == next.inverse_area) {
      spans.back().width += next.width;
    } else {
      spans.push_back(next);
    }
  }
  return spans;
}

template <int kLayers>
std::string launch_norm(const gaia_packed& packed, const std::vector<Span>& spans, int device, Stream stream) {
  Table<kLayers> table;
  for (size_t l = 0; l < spans.size(); ++l) {
    if (spans[l].begin + spans[l].width > 0x7fffffff) return "frobenius: more than 2**31 - 1 columns";
    table.begin[l] = static_cast<int>(spans[l].begin);
    table.width[l] = static_cast<int>(spans[l].width);
    table.inverse_area[l] = spans[l].inverse_area;
  }
  const Rows rows = {packed.moments, packed.stride_n, packed.output_component,
                     packed.p,       packed.score,    static_cast<int>(spans.size())};
  const Grid grid = {packed.n, kThreads};
  const auto run = [&](auto* kernel) { return launch("frobenius", kernel, grid, device, stream, rows, table); };
  switch (norm_of(packed.p)) {
    case Norm::kTwo: return run(frobenius_kernel<Norm::kTwo, kLayers>);
    case Norm::kOne: return run(frobenius_kernel<Norm::kOne, kLayers>);
    case Norm::kInfinity: return run(frobenius_kernel<Norm::kInfinity, kLayers>);
    case Norm::kOther: break;
  }
  return run(frobenius_kernel<Norm::kOther, kLayers>);
}

}  // namespace

std::string frobenius(const gaia_packed& packed, int device, Stream stream) {
  const std::vector<Span> spans = spans_of(packed);
  if (spans.size() <= kFewLayers) return launch_norm<kFewLayers>(packed, spans, device, stream);
  if (spans.size() <= kMaxLayers) return launch_norm<kMaxLayers>(packed, spans, device, stream);
  return "frobenius: " + std::to_string(packed.layers) + " layers; at most " + std::to_string(kMaxLayers) +
         " fit into a kernel's arguments";
}

}  // namespace gaia::cuda

// What surrounds a program on a device: images copied to where it reads them and looked at on the way, and, behind it,
// whether its results mean something; a launch each.
#include <cmath>

#include "elements.h"
#include "result_checks.h"

namespace gaia::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

// Whether it is so for any thread of the block; every thread is told.
__device__ inline bool any_of_block(bool here) {
  __shared__ unsigned warps[kWarps];
  const unsigned bits = __ballot_sync(0xffffffffu, here);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = bits;
  __syncthreads();
  unsigned all = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) all |= warps[warp];
  return all != 0;
}

// ---- images

struct alignas(16) Quad {
  unsigned word[4];
};

// The bits of the exponent: all of them are set in infinities and NaN alone.
template <class T>
struct Exponent;
template <>
struct Exponent<Float32> {
  static constexpr unsigned kBits = 0x7f800000u, kBoth = kBits;
};
template <>
struct Exponent<Float16> {
  static constexpr unsigned kBits = 0x7c00u, kBoth = 0x7c007c00u;
};
template <>
struct Exponent<BFloat16> {
  static constexpr unsigned kBits = 0x7f80u, kBoth = 0x7f807f80u;
};

// Whether an element, or one of the two in a word, is no number.
template <class T>
__device__ bool none_finite(typename T::Storage bits) {
  unsigned word;
  if constexpr (sizeof(bits) == 4) {
    word = __float_as_uint(bits);
  } else {
    word = bits;
  }
  return (word & Exponent<T>::kBits) == Exponent<T>::kBits;
}
template <class T>
__device__ bool word_not_finite(unsigned word) {
  constexpr unsigned kLow = Exponent<T>::kBits,
                     kHigh = Exponent<T>::kBoth & ~(sizeof(typename T::Storage) == 4 ? 0 : kLow);
  return (word & kLow) == kLow || (word & kHigh) == kHigh;
}

// A block for a part of an image. Few bytes a block: an image alone is spread over the device.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kThreads) copy_kernel(ImageCopy copy) {
  using Storage = typename T::Storage;
  const int64_t n = blockIdx.x / copy.parts, part = blockIdx.x % copy.parts;
  const int64_t numel = copy.x.k * copy.x.h * copy.x.w;
  const int64_t begin = part * copy.part, end = begin + copy.part < numel ? begin + copy.part : numel;
  const Storage* const from = static_cast<const Storage*>(copy.x.data) + n * copy.x.stride_n;
  Storage* const to = static_cast<Storage*>(copy.out) + n * numel;
  bool bad = false;
  if constexpr (kWhole) {
    constexpr int kVector = 16 / sizeof(Storage), kUnroll = 2;
    for (int64_t i = begin + threadIdx.x * kVector; i < end; i += kUnroll * kThreads * kVector) {
      Quad quads[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = i + u * kThreads * kVector;
        quads[u] = {{0, 0, 0, 0}};
        if (at < end) quads[u] = *reinterpret_cast<const Quad*>(from + at);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const int64_t at = i + u * kThreads * kVector;
#pragma unroll
        for (int j = 0; j < 4; ++j) bad |= word_not_finite<T>(quads[u].word[j]);
        if (at < end) store_quad(to + at, quads[u].word);
      }
    }
  } else {
    const unsigned width = static_cast<unsigned>(copy.x.w), positions = static_cast<unsigned>(copy.x.h) * width;
#pragma unroll 4
    for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
      const unsigned k = static_cast<unsigned>(i) / positions, position = static_cast<unsigned>(i) % positions;
      const unsigned h = position / width, w = position % width;
      const Storage bits = from[k * copy.x.stride_k + h * copy.x.stride_h + w * copy.x.stride_w];
      bad |= none_finite<T>(bits);
      to[i] = bits;
    }
  }
  bad = any_of_block(bad);
  if (threadIdx.x == 0) copy.finite[blockIdx.x] = !bad;
}

// ---- results

__device__ inline float element(const Matrix& matrix, int64_t n, int64_t column) {
  const int64_t at = n * matrix.stride_n + column * matrix.stride_column;
  if (matrix.dtype == GAIA_FLOAT32) return static_cast<const float*>(matrix.data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(matrix.data)[at];
  return matrix.dtype == GAIA_FLOAT16 ? Float16::widen(bits) : BFloat16::widen(bits);
}

__device__ inline bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

struct Larger {
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};
struct Smaller {
  __device__ float operator()(float a, float b) const { return fminf(a, b); }
};
struct Sum {
  __device__ double operator()(double a, double b) const { return a + b; }
};

// What comes of the values of all threads, in an order that is always the same; every thread is told.
template <class Value, class Merge>
__device__ Value merged(Value value, Merge merge) {
  __shared__ Value warps[kWarps];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = merge(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  value = warps[0];
#pragma unroll
  for (int warp = 1; warp < kWarps; ++warp) value = merge(value, warps[warp]);
  return value;
}

__device__ inline bool image_fails(const ResultChecks& checks, int64_t n) {
  const Matrix& logits = checks.logits;
  const int thread = static_cast<int>(threadIdx.x);
  bool bad = false;
  float largest = -INFINITY, least = INFINITY;
  for (int64_t c = thread; c < logits.columns; c += kThreads) {
    const float logit = element(logits, n, c);
    bad |= !is_finite(logit);
    largest = fmaxf(largest, logit);
    least = fminf(least, logit);
  }
  for (int64_t j = thread; j < checks.preconditions.columns; j += kThreads) {
    bad |= !(element(checks.preconditions, n, j) > 0.0f);
  }
  for (int64_t j = thread; j < checks.finite_count; j += kThreads) {
    bad |= checks.finite[n * checks.finite_stride + j] == 0;
  }
  if (thread < checks.score_count) bad |= !is_finite(element(checks.scores[thread], n, 0));
  if (checks.component_count == 0) return bad;
  if (thread < checks.component_count) bad |= !(element(checks.components[thread], n, 0) > 0.0f);
  largest = merged(largest, Larger());
  least = merged(least, Smaller());
  double total = 0.0;
  for (int64_t c = thread; c < logits.columns; c += kThreads) total += expf(element(logits, n, c) - largest);
  total = merged(total, Sum());
  // max over classes of |1 - C softmax(S)|: of the largest or the least logit.
  const double classes = static_cast<double>(logits.columns);
  const double slope = fmax(classes / total - 1.0, 1.0 - classes * expf(least - largest) / total);
  return bad || !(slope > checks.rounding);
}

__device__ inline bool piece_differs(const ResultChecks& checks, int64_t piece) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t address = checks.pieces[3 * piece], size = checks.pieces[3 * piece + 1];
  const uint8_t* const here = reinterpret_cast<const uint8_t*>(address);
  const uint8_t* const expected = checks.expected + checks.pieces[3 * piece + 2];
  bool differs = false;
  if ((address | size | reinterpret_cast<int64_t>(expected)) % 4 == 0) {
    const unsigned *const words = reinterpret_cast<const unsigned*>(here), *const were =
                                                                               reinterpret_cast<const unsigned*>(
                                                                                   expected);
    for (int64_t i = lane; i < size / 4; i += 32) differs |= words[i] != were[i];
  } else {
    for (int64_t i = lane; i < size; i += 32) differs |= here[i] != expected[i];
  }
  return differs;
}

// A block for each image, and then a warp for each piece of memory.
__global__ void __launch_bounds__(kThreads) check_kernel(const __grid_constant__ ResultChecks checks, unsigned blocks) {
  const int64_t n = blockIdx.x;
  bool bad = false;
  if (n < checks.n) {
    bad = image_fails(checks, n);
  } else {
    const int64_t piece = (n - checks.n) * kWarps + threadIdx.x / 32;
    if (piece < checks.piece_count) bad = piece_differs(checks, piece);
  }
  bad = any_of_block(bad);
  if (threadIdx.x != 0) return;
  if (n < checks.n) checks.answers[n] = !bad;
  if (checks.counts == nullptr) return;
  unsigned* const ended = reinterpret_cast<unsigned*>(checks.counts);
  unsigned* const failed = ended + 1;
  if (bad) atomicOr(failed, 1u);
  __threadfence();
  if (atomicAdd(ended, 1u) + 1 != blocks) return;
  __threadfence();
  const int64_t launches = checks.counts[1] + 1, failures = checks.counts[2] + (atomicOr(failed, 0u) != 0);
  checks.counts[0] = 0;
  checks.counts[1] = launches;
  checks.counts[2] = failures;
  // Whoever sees that the launch has ended sees how it did.
  volatile int64_t* const told = checks.told;
  told[0] = failures;
  __threadfence_system();
  told[1] = launches;
}

}  // namespace

std::string copy_and_check(const ImageCopy& copy, int device, Stream stream) {
  const Grid grid = {copy.x.n * copy.parts, kThreads};
  const auto run = [&](auto type) {
    using T = decltype(type);
    return copy.whole ? launch("copy_and_check", copy_kernel<T, true>, grid, device, stream, copy)
                      : launch("copy_and_check", copy_kernel<T, false>, grid, device, stream, copy);
  };
  if (copy.x.dtype == GAIA_FLOAT16) return run(Float16());
  if (copy.x.dtype == GAIA_BFLOAT16) return run(BFloat16());
  return run(Float32());
}

std::string check_results(const ResultChecks& checks, int device, Stream stream) {
  const int64_t blocks = checks.n + (checks.piece_count + kWarps - 1) / kWarps;
  return launch("check_results", check_kernel, Grid{blocks, kThreads}, device, stream, checks,
                static_cast<unsigned>(blocks));
}

}  // namespace gaia::cuda

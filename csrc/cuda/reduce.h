// The moments of maps, one kernel for each way that a map lies in memory. What is reduced is an Operand: a struct with
//
//   using Type;                             the element type
//   struct Loaded<V>;                       V elements of each map it reads
//   struct Thread<L, V>;                    one thread's view of it, made from (operand, n, k):
//     Loaded<V> load(h, w);
//     void finish(h, w, loaded, values);    writes what the operand writes; sets V values to be reduced
//
// A vector is V positions from (h, w) on where the layout is kRows, and V channels from k on where it is kChannels.
// Where it is kPieces, channels follow each other without a gap, and a vector's V positions may belong to several.
#pragma once

#include "elements.h"

namespace gaia::cuda {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kBlocks = 2;  // on a multiprocessor, at least: the registers are shared out accordingly

struct Sums {
  float sum, abs_sum;
  int nonzero;
};

__device__ inline float magnitude(float x) { return __uint_as_float(__float_as_uint(x) & 0x7fffffffu); }

// Sums the values, or their magnitudes, pairwise: chains of additions stay short.
template <int Count>
__device__ __forceinline__ float pairwise(const float* values) {
  return pairwise<Count / 2>(values) + pairwise<Count / 2>(values + Count / 2);
}
template <>
__device__ __forceinline__ float pairwise<1>(const float* values) {
  return *values;
}
template <int Count>
__device__ __forceinline__ float pairwise_magnitudes(const float* values) {
  return pairwise_magnitudes<Count / 2>(values) + pairwise_magnitudes<Count / 2>(values + Count / 2);
}
template <>
__device__ __forceinline__ float pairwise_magnitudes<1>(const float* values) {
  return magnitude(*values);
}

template <int Count>
__device__ __forceinline__ void add(Sums& sums, const float (&values)[Count]) {
  sums.sum += pairwise<Count>(values);
  sums.abs_sum += pairwise_magnitudes<Count>(values);
#pragma unroll
  for (int i = 0; i < Count; ++i) sums.nonzero += __float_as_uint(magnitude(values[i])) != 0;
}

// A map as a thread reads it: from one image and channel on.
template <class T, Layout L>
struct Cursor {
  typename T::Storage* first;
  int64_t stride_h, stride_w;

  Cursor() = default;
  __device__ Cursor(const gaia_map& map, int64_t n, int64_t k)
      : first(static_cast<typename T::Storage*>(map.data) + n * map.stride_n + k * map.stride_k),
        stride_h(map.stride_h),
        stride_w(map.stride_w) {}
  __device__ typename T::Storage* at(int h, int w) const {
    if (L == Layout::kRows || L == Layout::kPieces) return first + w;
    if (L == Layout::kChannels) return first + w * stride_w;
    return first + h * stride_h + w * stride_w;
  }
  template <int V>
  __device__ Pack<T, V> load(int h, int w) const {
    return *reinterpret_cast<const Pack<T, V>*>(at(h, w));
  }
  template <int V>
  __device__ void store(int h, int w, const Pack<T, V>& pack) const {
    if constexpr (sizeof(pack) == 16) {
      unsigned quad[4];
      memcpy(quad, &pack, sizeof(quad));
      store_quad(at(h, w), quad);
    } else {
      *reinterpret_cast<Pack<T, V>*>(at(h, w)) = pack;
    }
  }
};

// What one thread needs of a (K,) parameter of a map: one value, or one for each channel of its vectors.
template <Layout L, int V>
struct Parameter {
  static constexpr int kCount = L == Layout::kChannels ? V : 1;
  float value[kCount];

  Parameter() = default;
  __device__ Parameter(const float* first, const gaia_map&, int64_t k, float absent) {
#pragma unroll
    for (int v = 0; v < kCount; ++v) value[v] = first == nullptr ? absent : first[k + v];
  }
  __device__ const Parameter& at(int) const { return *this; }
  __device__ float operator[](int v) const { return value[v % kCount]; }
};

// Of a piece: looked up for every vector.
template <int V>
struct Parameter<Layout::kPieces, V> {
  struct Values {
    float value[V];
    __device__ float operator[](int v) const { return value[v]; }
  };
  const float* first;
  int positions;
  float absent;

  Parameter() = default;
  __device__ Parameter(const float* first, const gaia_map& map, int64_t k, float absent)
      : first(first == nullptr ? nullptr : first + k), positions(static_cast<int>(map.h * map.w)), absent(absent) {}
  __device__ Values at(int i) const {
    Values values;
    int channel = i / positions, left = positions - i % positions;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values.value[v] = first == nullptr ? absent : first[channel];
      if (--left == 0) {
        ++channel;
        left = positions;
      }
    }
    return values;
  }
};

struct Shape {
  int64_t n, k;
  int w, positions, chunk;
  int64_t splits, stride_split;
};

__device__ inline void store(const gaia_moments& out, int64_t at, float sum, float abs_sum, float nonzero) {
  if (out.sum != nullptr) out.sum[at] = sum;
  if (out.abs_sum != nullptr) out.abs_sum[at] = abs_sum;
  if (out.nonzero != nullptr) out.nonzero[at] = nonzero;
}

// Where an element lies: position i of a channel.
template <Layout L>
__device__ int row_of(int i, int width) {
  return L == Layout::kStrided ? i / width : 0;
}
template <Layout L>
__device__ int column_of(int i, int width) {
  return L == Layout::kStrided ? i % width : i;
}

// `lanes` threads of a warp share a channel's chunk of positions. Of short channels each thread has `Rows` at a time in
// flight, of long ones (Rows == 1) `Steps` vectors.
template <class Operand, Layout L, int V, int Rows, int Steps>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_rows(Operand operand, gaia_moments out, Shape shape, int lanes) {
  using Thread = typename Operand::template Thread<L, V>;
  using Loaded = typename Operand::template Loaded<V>;
  const unsigned splits = static_cast<unsigned>(shape.splits), channels = static_cast<unsigned>(shape.k);
  const unsigned rows = static_cast<unsigned>(shape.n) * channels;
  const unsigned split = blockIdx.x % splits;
  const unsigned lane = threadIdx.x % lanes;
  const unsigned first_row = (blockIdx.x / splits * (kThreads / lanes) + threadIdx.x / lanes) * Rows;
  const int begin = static_cast<int>(split) * shape.chunk;
  const int end = shape.positions - begin < shape.chunk ? shape.positions : begin + shape.chunk;

  Thread threads[Rows];
  Sums sums[Rows] = {};
  unsigned n = first_row / channels, k = first_row % channels;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    if (first_row + r < rows) threads[r] = Thread(operand, n, k);
    if (++k == channels) {
      k = 0;
      ++n;
    }
  }
  for (int first = begin + static_cast<int>(lane) * V; first < end; first += lanes * V * Steps) {
    Loaded loaded[Rows][Steps];
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int s = 0; s < Steps; ++s) {
        const int i = first + s * lanes * V;
        if (first_row + r < rows && i < end) {
          loaded[r][s] = threads[r].load(row_of<L>(i, shape.w), column_of<L>(i, shape.w));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      float values[Steps * V] = {};
#pragma unroll
      for (int s = 0; s < Steps; ++s) {
        const int i = first + s * lanes * V;
        if (first_row + r < rows && i < end) {
          threads[r].finish(row_of<L>(i, shape.w), column_of<L>(i, shape.w), loaded[r][s], values + s * V);
        }
      }
      add(sums[r], values);
    }
  }
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      sums[r].sum += __shfl_xor_sync(0xffffffffu, sums[r].sum, distance);
      sums[r].abs_sum += __shfl_xor_sync(0xffffffffu, sums[r].abs_sum, distance);
      sums[r].nonzero += __shfl_xor_sync(0xffffffffu, sums[r].nonzero, distance);
    }
    const unsigned row = first_row + r;
    if (lane == 0 && row < rows) {
      const int64_t at = split * shape.stride_split + row / channels * out.stride_n + row % channels;
      store(out, at, sums[r].sum, sums[r].abs_sum, static_cast<float>(sums[r].nonzero));
    }
  }
}

// Contiguous channels: `columns` threads side by side hold V channels each and carry them over the chunk's positions,
// which the block's kThreads / columns lines share.
template <class Operand, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_channels(Operand operand, gaia_moments out, Shape shape, int columns, unsigned blocks) {
  constexpr int kSteps = 4;                  // vectors in flight
  constexpr int kTogether = V == 8 ? 2 : 4;  // summed at once: more would not fit the registers
  using Thread = typename Operand::template Thread<Layout::kChannels, V>;
  using Loaded = typename Operand::template Loaded<V>;
  __shared__ float partial[3][kThreads * V];
  const unsigned splits = static_cast<unsigned>(shape.splits);
  const unsigned split = blockIdx.x % splits;
  const unsigned block = blockIdx.x / splits % blocks;
  const unsigned n = blockIdx.x / splits / blocks;
  const int column = static_cast<int>(threadIdx.x) % columns, line = static_cast<int>(threadIdx.x) / columns;
  const int lines = kThreads / columns;
  const int64_t k = (static_cast<int64_t>(block) * columns + column) * V;
  const int begin = static_cast<int>(split) * shape.chunk;
  const int end = shape.positions - begin < shape.chunk ? shape.positions : begin + shape.chunk;

  Sums sums[V] = {};
  if (k < shape.k) {
    const Thread thread(operand, n, k);
    for (int first = begin + line; first < end; first += lines * kSteps) {
      Loaded loaded[kSteps];
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
        if (first + s * lines < end) loaded[s] = thread.load(0, first + s * lines);
      }
#pragma unroll
      for (int some = 0; some < kSteps; some += kTogether) {
        float values[kTogether * V] = {};
#pragma unroll
        for (int s = 0; s < kTogether; ++s) {
          const int i = first + (some + s) * lines;
          if (i < end) thread.finish(0, i, loaded[some + s], values + s * V);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) {
          float channel[kTogether];
#pragma unroll
          for (int s = 0; s < kTogether; ++s) channel[s] = values[s * V + v];
          add(sums[v], channel);
        }
      }
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int at = v * kThreads + static_cast<int>(threadIdx.x);
    partial[0][at] = sums[v].sum;
    partial[1][at] = sums[v].abs_sum;
    partial[2][at] = static_cast<float>(sums[v].nonzero);
  }
  for (int distance = lines / 2; distance > 0; distance /= 2) {
    __syncthreads();
    if (line < distance) {
#pragma unroll
      for (int i = 0; i < 3 * V; ++i) {
        const int at = i % V * kThreads + static_cast<int>(threadIdx.x);
        partial[i / V][at] += partial[i / V][at + distance * columns];
      }
    }
  }
  if (line == 0 && k < shape.k) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int at = v * kThreads + column;
      store(out, split * shape.stride_split + n * out.stride_n + k + v, partial[0][at], partial[1][at], partial[2][at]);
    }
  }
}

constexpr int kPieceBytes = 20 << 10;

// Contiguous channels of which only several together are whole vectors (7 x 7 positions, say): a block reads `piece` of
// them as one row, keeps what is to be reduced, and adds each channel up with `lanes` threads.
template <class Operand, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_pieces(Operand operand, gaia_moments out, Shape shape, int piece, unsigned blocks, int lanes) {
  constexpr int kSteps = 4;
  using T = typename Operand::Type;
  using Thread = typename Operand::template Thread<Layout::kPieces, V>;
  using Loaded = typename Operand::template Loaded<V>;
  __shared__ Pack<T, V> kept[kPieceBytes / sizeof(Pack<T, V>)];
  const unsigned n = blockIdx.x / blocks;
  const int first_k = static_cast<int>(blockIdx.x % blocks) * piece;
  const int rest = static_cast<int>(shape.k) - first_k;
  const int channels = rest < piece ? rest : piece;
  const int vectors = channels * shape.positions / V;
  const int self = static_cast<int>(threadIdx.x);

  const Thread thread(operand, n, first_k);
  for (int first = self; first < vectors; first += kThreads * kSteps) {
    Loaded loaded[kSteps];
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int i = first + s * kThreads;
      if (i < vectors) loaded[s] = thread.load(0, i * V);
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const int i = first + s * kThreads;
      if (i < vectors) {
        float values[V];
        thread.finish(0, i * V, loaded[s], values);
        Pack<T, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) pack.element[v] = T::narrow(values[v]);  // exact: it was of this type
        kept[i] = pack;
      }
    }
  }
  __syncthreads();
  const auto* const elements = reinterpret_cast<const typename T::Storage*>(kept);
  const int lane = self % lanes;
  for (int group = 0; group < channels; group += kThreads / lanes) {
    const int channel = group + self / lanes;
    Sums sums = {};
    if (channel < channels) {
#pragma unroll 4
      for (int p = lane; p < shape.positions; p += lanes) {
        const float values[1] = {T::widen(elements[channel * shape.positions + p])};
        add(sums, values);
      }
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      sums.sum += __shfl_xor_sync(0xffffffffu, sums.sum, distance);
      sums.abs_sum += __shfl_xor_sync(0xffffffffu, sums.abs_sum, distance);
      sums.nonzero += __shfl_xor_sync(0xffffffffu, sums.nonzero, distance);
    }
    if (lane == 0 && channel < channels) {
      store(out, n * out.stride_n + first_k + channel, sums.sum, sums.abs_sum, static_cast<float>(sums.nonzero));
    }
  }
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class Operand, Layout L, int V>
std::string launch_rows(const char* name, const Operand& operand, const gaia_moments& out, const Shape& shape,
                        int device, Stream stream) {
  if (shape.n * shape.k > 0x7fffffff - 4 * kThreads) return std::string(name) + ": more than 2**31 channels of images";
  // Four vectors a thread: of one channel where it is long enough, else one each of four channels.
  const int vectors = static_cast<int>(ceil_div(shape.positions < shape.chunk ? shape.positions : shape.chunk, V));
  int lanes = 1;
  while (lanes < kWarp && lanes < vectors) lanes *= 2;
  const bool is_short = vectors <= 2 * kWarp;
  if (is_short && lanes > 4) lanes = lanes / 2;  // two vectors of each channel: fewer shuffles
  const int64_t rows_a_block = kThreads / lanes * (is_short ? 4 : 1);
  const Grid grid = {ceil_div(shape.n * shape.k, rows_a_block) * shape.splits, kThreads};
  if (is_short) return launch(name, reduce_rows<Operand, L, V, 4, 1>, grid, device, stream, operand, out, shape, lanes);
  return launch(name, reduce_rows<Operand, L, V, 1, 4>, grid, device, stream, operand, out, shape, lanes);
}

template <class Operand, int V>
std::string launch_channels(const char* name, const Operand& operand, const gaia_moments& out, const Shape& shape,
                            int block_k, int device, Stream stream) {
  int columns = block_k / V;
  columns = columns < 1 ? 1 : columns > kThreads ? kThreads : columns;
  const int64_t blocks = ceil_div(shape.k, static_cast<int64_t>(columns) * V);
  const Grid grid = {shape.n * blocks * shape.splits, kThreads};
  return launch(name, reduce_channels<Operand, V>, grid, device, stream, operand, out, shape, columns,
                static_cast<unsigned>(blocks));
}

template <class Operand, int V>
std::string launch_pieces(const char* name, const Operand& operand, const gaia_moments& out, const Shape& shape,
                          int piece, int device, Stream stream) {
  if (int64_t{piece} * shape.positions * sizeof(typename Operand::Type::Storage) > kPieceBytes) {
    return std::string(name) + ": a piece of " + std::to_string(piece) + " channels is too large";
  }
  int lanes = kWarp;
  while (lanes > 1 && lanes * piece > kThreads) lanes /= 2;
  const int64_t blocks = ceil_div(shape.k, piece);
  return launch(name, reduce_pieces<Operand, V>, Grid{shape.n * blocks, kThreads}, device, stream, operand, out, shape,
                piece, static_cast<unsigned>(blocks), lanes);
}

// Reduces `operand`, whose maps have the shape of `map`.
template <class Operand>
std::string reduce(const char* name, const Operand& operand, const gaia_map& map, const gaia_moments& out,
                   const Tiling& tiling, int device, Stream stream) {
  constexpr int kFull = 16 / sizeof(typename Operand::Type::Storage);
  const Shape shape = {map.n,
                       map.k,
                       static_cast<int>(map.w),
                       static_cast<int>(map.h * map.w),
                       static_cast<int>(tiling.chunk),
                       tiling.splits,
                       tiling.stride_split};
  switch (tiling.layout) {
    case Layout::kRows:
      if (tiling.piece > 0) {
        return launch_pieces<Operand, kFull>(name, operand, out, shape, tiling.piece, device, stream);
      }
      if (tiling.vector == kFull) {
        return launch_rows<Operand, Layout::kRows, kFull>(name, operand, out, shape, device, stream);
      }
      return launch_rows<Operand, Layout::kRows, 1>(name, operand, out, shape, device, stream);
    case Layout::kChannels:
      if (tiling.vector == kFull) {
        return launch_channels<Operand, kFull>(name, operand, out, shape, tiling.block_k, device, stream);
      }
      return launch_channels<Operand, 1>(name, operand, out, shape, tiling.block_k, device, stream);
    case Layout::kPieces:
    case Layout::kStrided: break;
  }
  return launch_rows<Operand, Layout::kStrided, 1>(name, operand, out, shape, device, stream);
}

// Calls `kernel` with the element type of `dtype`.
template <class Kernel>
std::string with_type(gaia_dtype dtype, const Kernel& kernel) {
  switch (dtype) {
    case GAIA_FLOAT32: return kernel(Float32{});
    case GAIA_FLOAT16: return kernel(Float16{});
    case GAIA_BFLOAT16: break;
  }
  return kernel(BFloat16{});
}

}  // namespace gaia::cuda

// The moments of maps, one kernel for each way that a map lies in memory. What is reduced is an Operand: a struct with
//
//   using Type;                             the element type
//   constexpr int kMoments;                 3, or 1 where the values are counted alone
//   struct Loaded<V>;                       V elements of each map it reads
//   struct Thread<L, V>;                    one thread's view of it, made from (operand, n, k):
//     Loaded<V> load(h, w);
//     void finish(h, w, loaded, values);    writes what the operand writes; sets V values to be reduced
//
// A vector is V positions from (h, w) on where the layout is kRows, and V channels from k on where it is kChannels.
// Where it is kPieces, channels follow each other without a gap, and a vector's V positions may belong to several.
//
// Where several blocks share a channel's positions, each writes partial results and draws a ticket; who draws the last
// adds them up, in their order, and leaves the ticket as it was found: zero.
#pragma once

#include "elements.h"

namespace gaia::cuda {

constexpr int kWarp = 32;
constexpr int kLogThreads = 8;
constexpr int kThreads = 1 << kLogThreads;
constexpr int kBlocks = 2;  // on a multiprocessor, at least: the registers are shared out accordingly

// Division by a number that the host knows: an integer division costs a thread more than what it is for.
struct Divider {
  unsigned divisor = 1, multiplier = 1, shift = 0;

  Divider() = default;
  explicit Divider(int64_t by) : divisor(static_cast<unsigned>(by)) {
    while ((int64_t{1} << shift) < by) ++shift;
    multiplier = static_cast<unsigned>((uint64_t{1} << 32) * ((uint64_t{1} << shift) - divisor) / divisor + 1);
  }
  // For numbers below 2**31.
  __device__ unsigned quotient(unsigned number) const {
    return (static_cast<unsigned>(static_cast<uint64_t>(number) * multiplier >> 32) + number) >> shift;
  }
  __device__ unsigned remainder(unsigned number) const { return number - quotient(number) * divisor; }
};

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
  __device__ Parameter(const float* first, const Divider&, int64_t k, float absent) {
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
  Divider positions;
  float absent;

  Parameter() = default;
  __device__ Parameter(const float* first, const Divider& positions, int64_t k, float absent)
      : first(first == nullptr ? nullptr : first + k), positions(positions), absent(absent) {}
  __device__ Values at(int i) const {
    Values values;
    if (first == nullptr) {
#pragma unroll
      for (int v = 0; v < V; ++v) values.value[v] = absent;
      return values;
    }
    int channel = static_cast<int>(positions.quotient(i));
    int left = static_cast<int>(positions.divisor) * (channel + 1) - i;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      values.value[v] = first[channel];
      if (--left == 0) {
        ++channel;
        left = static_cast<int>(positions.divisor);
      }
    }
    return values;
  }
};

struct Shape {
  int64_t n, k;
  int positions, chunk;
  Divider width, channels, splits;
  gaia_moments out;
  float* partial;     // (splits, kMoments, n, k)
  unsigned* tickets;  // a zero for each group of blocks that share channels
};

// Writes moment m of channel k of image n: its result or, where blocks may share a channel, this one's share of it.
template <int Moments, bool Shared>
__device__ __forceinline__ void store(const Shape& shape, unsigned split, int m, int64_t n, int64_t k, float value) {
  if (Shared && shape.splits.divisor > 1) {
    shape.partial[((split * Moments + m) * shape.n + n) * shape.k + k] = value;
  } else {
    float* const to = Moments == 1 || m == 2 ? shape.out.nonzero : m == 0 ? shape.out.sum : shape.out.abs_sum;
    to[n * shape.out.stride_n + k] = value;
  }
}

template <int Moments, bool Shared>
__device__ __forceinline__ void store(const Shape& shape, unsigned split, int64_t n, int64_t k, const Sums& sums) {
  if constexpr (Moments == 3) {
    store<3, Shared>(shape, split, 0, n, k, sums.sum);
    store<3, Shared>(shape, split, 1, n, k, sums.abs_sum);
  }
  store<Moments, Shared>(shape, split, Moments - 1, n, k, static_cast<float>(sums.nonzero));
}

// Called by whole blocks that have stored their shares of `count` channels from `first` on, counted over all images.
template <int Moments>
__device__ __forceinline__ void add_splits(const Shape& shape, unsigned group, unsigned first, int count) {
  const unsigned splits = shape.splits.divisor;
  if (splits == 1) return;
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(shape.tickets + group, 1u) == splits - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (threadIdx.x == 0) shape.tickets[group] = 0;
  const int64_t apart = shape.n * shape.k;
#pragma unroll 1
  for (int j = static_cast<int>(threadIdx.x); j < Moments * count; j += kThreads) {
    const int m = (j >= count) + (j >= 2 * count);
    const unsigned row = first + j - m * count;
    const float* const shares = shape.partial + m * apart + row;
    float total = 0.0f;
#pragma unroll 8
    for (unsigned split = 0; split < splits; ++split) total += shares[split * Moments * apart];
    const unsigned n = shape.channels.quotient(row);
    float* const to = Moments == 1 || m == 2 ? shape.out.nonzero : m == 0 ? shape.out.sum : shape.out.abs_sum;
    to[n * shape.out.stride_n + (row - n * shape.channels.divisor)] = total;
  }
}

// What `lanes` neighbouring threads of a warp have, added up.
template <int Moments>
__device__ __forceinline__ void add_lanes(Sums& sums, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    if constexpr (Moments == 3) {
      sums.sum += __shfl_xor_sync(0xffffffffu, sums.sum, distance);
      sums.abs_sum += __shfl_xor_sync(0xffffffffu, sums.abs_sum, distance);
    }
    sums.nonzero += __shfl_xor_sync(0xffffffffu, sums.nonzero, distance);
  }
}

// Where an element lies: position i of a channel.
template <Layout L>
__device__ int row_of(int i, const Divider& width) {
  return L == Layout::kStrided ? static_cast<int>(width.quotient(i)) : 0;
}
template <Layout L>
__device__ int column_of(int i, const Divider& width) {
  return L == Layout::kStrided ? static_cast<int>(width.remainder(i)) : i;
}

// 2**`log_lanes` threads of a warp share a channel's chunk of positions. Of short channels each thread has `Rows` at a
// time in flight, of long ones (Rows == 1) `Steps` vectors.
template <class Operand, Layout L, int V, int Rows, int Steps>
__global__ void __launch_bounds__(kThreads, kBlocks) reduce_rows(Operand operand, Shape shape, int log_lanes) {
  using Thread = typename Operand::template Thread<L, V>;
  using Loaded = typename Operand::template Loaded<V>;
  constexpr int kMoments = Operand::kMoments;
  constexpr bool kShared = Rows == 1;                         // short channels are never shared
  constexpr int kTogether = Steps * V > 16 ? 16 / V : Steps;  // summed at once: more would not fit the registers
  const int lanes = 1 << log_lanes;
  const unsigned channels = shape.channels.divisor;
  const unsigned rows = static_cast<unsigned>(shape.n) * channels;
  const unsigned group = kShared ? shape.splits.quotient(blockIdx.x) : blockIdx.x;
  const unsigned split = blockIdx.x - group * (kShared ? shape.splits.divisor : 1);
  const unsigned lane = threadIdx.x & (lanes - 1);
  const unsigned block_row = group * (unsigned{Rows} << (kLogThreads - log_lanes));
  const unsigned first_row = block_row + (threadIdx.x >> log_lanes) * Rows;
  const int begin = static_cast<int>(split) * shape.chunk;
  const int end = shape.positions - begin < shape.chunk ? shape.positions : begin + shape.chunk;

  Thread threads[Rows];
  Sums sums[Rows] = {};
  const unsigned first_n = shape.channels.quotient(first_row), first_k = first_row - first_n * channels;
  unsigned n = first_n, k = first_k;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    if (first_row + r < rows) threads[r] = Thread(operand, n, k);
    if (++k == channels) {
      k = 0;
      ++n;
    }
  }
#pragma unroll 1
  for (int first = begin + static_cast<int>(lane) * V; first < end; first += lanes * V * Steps) {
    Loaded loaded[Rows][Steps];
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int s = 0; s < Steps; ++s) {
        const int i = first + s * lanes * V;
        if (first_row + r < rows && i < end) {
          loaded[r][s] = threads[r].load(row_of<L>(i, shape.width), column_of<L>(i, shape.width));
        }
      }
    }
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
#pragma unroll
      for (int some = 0; some < Steps; some += kTogether) {
        float values[kTogether * V] = {};
#pragma unroll
        for (int s = 0; s < kTogether; ++s) {
          const int i = first + (some + s) * lanes * V;
          if (first_row + r < rows && i < end) {
            const auto& vector = loaded[r][some + s];
            threads[r].finish(row_of<L>(i, shape.width), column_of<L>(i, shape.width), vector, values + s * V);
          }
        }
        add(sums[r], values);
      }
    }
  }
  n = first_n;
  k = first_k;
#pragma unroll
  for (int r = 0; r < Rows; ++r) {
    add_lanes<kMoments>(sums[r], lanes);
    if (lane == 0 && first_row + r < rows) store<kMoments, kShared>(shape, split, n, k, sums[r]);
    if (++k == channels) {
      k = 0;
      ++n;
    }
  }
  if constexpr (kShared) {
    const unsigned left = rows - block_row, most = kThreads >> log_lanes;
    add_splits<kMoments>(shape, group, block_row, static_cast<int>(left < most ? left : most));
  }
}

// Contiguous channels: 2**`log_columns` threads side by side hold V channels each and carry them over the chunk's
// positions, which the block's lines of so many threads share.
template <class Operand, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_channels(Operand operand, Shape shape, int log_columns, Divider blocks) {
  constexpr int kSteps = 4;                  // vectors in flight
  constexpr int kTogether = V == 8 ? 2 : 4;  // summed at once: more would not fit the registers
  constexpr int kMoments = Operand::kMoments;
  constexpr int kWide = V < 4 ? V : 4;  // values that a thread hands over at once
  using Thread = typename Operand::template Thread<Layout::kChannels, V>;
  using Loaded = typename Operand::template Loaded<V>;
  struct alignas(4 * kWide) Values {
    float value[kWide];
  };
  __shared__ Values shared[kMoments * V / kWide][kThreads];
  const int columns = 1 << log_columns, lines = kThreads >> log_columns;
  const unsigned group = shape.splits.quotient(blockIdx.x);
  const unsigned split = blockIdx.x - group * shape.splits.divisor;
  const unsigned n = blocks.quotient(group);
  const unsigned first_k = (group - n * blocks.divisor) * V << log_columns;
  const int column = static_cast<int>(threadIdx.x) & (columns - 1), line = static_cast<int>(threadIdx.x) >> log_columns;
  const unsigned k = first_k + column * V;
  const int begin = static_cast<int>(split) * shape.chunk;
  const int end = shape.positions - begin < shape.chunk ? shape.positions : begin + shape.chunk;

  Sums sums[V] = {};
  if (k < shape.channels.divisor) {
    const Thread thread(operand, n, k);
#pragma unroll 1  // or the number of steps is worked out by a division
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
  for (int i = 0; i < kMoments * V; i += kWide) {
    Values values;
#pragma unroll
    for (int j = 0; j < kWide; ++j) {
      const Sums& of = sums[(i + j) % V];
      const int m = kMoments == 1 ? 2 : (i + j) / V;
      values.value[j] = m == 0 ? of.sum : m == 1 ? of.abs_sum : static_cast<float>(of.nonzero);
    }
    shared[i / kWide][threadIdx.x] = values;
  }
  __syncthreads();
  // A thread for each result adds it up over the lines: eight at a time, so that chains stay short.
  for (int j = static_cast<int>(threadIdx.x); j < kMoments * V << log_columns; j += kThreads) {
    const int at = j / kWide & (columns - 1), i = (j / kWide >> log_columns) * kWide + j % kWide;
    const Values* const from = shared[i / kWide] + at;
    float total = 0.0f;
    if (lines >= 8) {
      for (int first = 0; first < lines; first += 8) {
        float values[8];
#pragma unroll
        for (int l = 0; l < 8; ++l) values[l] = from[(first + l) << log_columns].value[j % kWide];
        total += pairwise<8>(values);
      }
    } else {
      for (int l = 0; l < lines; ++l) total += from[l << log_columns].value[j % kWide];
    }
    const unsigned channel = first_k + at * V + i % V;
    if (channel < shape.channels.divisor) store<kMoments, true>(shape, split, i / V, n, channel, total);
  }
  const unsigned left = shape.channels.divisor - first_k, most = unsigned{V} << log_columns;
  add_splits<kMoments>(shape, group, n * shape.channels.divisor + first_k, static_cast<int>(left < most ? left : most));
}

constexpr int kPieceBytes = 20 << 10;

// Contiguous channels of which only several together are whole vectors (7 x 7 positions, say): a block reads `piece` of
// them as one row, keeps what is to be reduced, and adds each channel up with 2**`log_lanes` threads.
template <class Operand, int V>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_pieces(Operand operand, Shape shape, int piece, Divider blocks, int log_lanes) {
  constexpr int kSteps = 4;
  constexpr int kMoments = Operand::kMoments;
  using T = typename Operand::Type;
  using Thread = typename Operand::template Thread<Layout::kPieces, V>;
  using Loaded = typename Operand::template Loaded<V>;
  __shared__ Pack<T, V> kept[kPieceBytes / sizeof(Pack<T, V>)];
  const unsigned n = blocks.quotient(blockIdx.x);
  const int first_k = static_cast<int>(blockIdx.x - n * blocks.divisor) * piece;
  const int rest = static_cast<int>(shape.k) - first_k;
  const int channels = rest < piece ? rest : piece;
  const int vectors = static_cast<int>(static_cast<unsigned>(channels * shape.positions) / V);
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
  const int lanes = 1 << log_lanes, lane = self & (lanes - 1);
  for (int group = 0; group < channels; group += kThreads >> log_lanes) {
    const int channel = group + (self >> log_lanes);
    Sums sums = {};
    if (channel < channels) {
#pragma unroll 4
      for (int p = lane; p < shape.positions; p += lanes) {
        const float values[1] = {T::widen(elements[channel * shape.positions + p])};
        add(sums, values);
      }
    }
    add_lanes<kMoments>(sums, lanes);
    if (lane == 0 && channel < channels) store<kMoments, false>(shape, 0, n, first_k + channel, sums);
  }
}

template <class Operand, Layout L, int V>
std::string launch_rows(const char* name, const Operand& operand, const Shape& shape, int device, Stream stream) {
  // Four vectors a thread: of one channel where it is long enough, else one each of four channels.
  const int vectors = static_cast<int>(ceil_div(shape.positions < shape.chunk ? shape.positions : shape.chunk, V));
  int log_lanes = 0;
  while (1 << log_lanes < kWarp && 1 << log_lanes < vectors) ++log_lanes;
  const bool is_short = vectors <= 2 * kWarp && shape.splits.divisor == 1;
  if (is_short && log_lanes > 2) --log_lanes;  // two vectors of each channel: fewer shuffles
  const int64_t rows_a_block = (kThreads >> log_lanes) * (is_short ? 4 : 1);
  const Grid grid = {ceil_div(shape.n * shape.k, rows_a_block) * shape.splits.divisor, kThreads};
  const auto kernel = is_short ? reduce_rows<Operand, L, V, 4, 1> : reduce_rows<Operand, L, V, 1, 4>;
  return launch(name, kernel, grid, device, stream, operand, shape, log_lanes);
}

template <class Operand, int V>
std::string launch_channels(const char* name, const Operand& operand, const Shape& shape, int block_k, int device,
                            Stream stream) {
  int log_columns = 0;
  while (1 << log_columns < kThreads && V << log_columns < block_k) ++log_columns;
  const int64_t blocks = ceil_div(shape.k, int64_t{V} << log_columns);
  const Grid grid = {shape.n * blocks * shape.splits.divisor, kThreads};
  return launch(name, reduce_channels<Operand, V>, grid, device, stream, operand, shape, log_columns, Divider(blocks));
}

template <class Operand, int V>
std::string launch_pieces(const char* name, const Operand& operand, const Shape& shape, int piece, int device,
                          Stream stream) {
  if (int64_t{piece} * shape.positions * sizeof(typename Operand::Type::Storage) > kPieceBytes) {
    return std::string(name) + ": a piece of " + std::to_string(piece) + " channels is too large";
  }
  int log_lanes = 5;
  while (log_lanes > 0 && piece << log_lanes > kThreads) --log_lanes;
  const int64_t blocks = ceil_div(shape.k, piece);
  return launch(name, reduce_pieces<Operand, V>, Grid{shape.n * blocks, kThreads}, device, stream, operand, shape,
                piece, Divider(blocks), log_lanes);
}

// Reduces `operand`, whose maps have the shape of `map`.
template <class Operand>
std::string reduce(const char* name, const Operand& operand, const gaia_map& map, const gaia_moments& out,
                   const Tiling& tiling, int device, Stream stream) {
  constexpr int kFull = 16 / sizeof(typename Operand::Type::Storage);
  if (map.n * map.k > 0x7fffffff - 4 * kThreads) return std::string(name) + ": more than 2**31 channels of images";
  if (tiling.splits > 1 && (tiling.partial == nullptr || tiling.tickets == nullptr)) {
    return std::string(name) + ": no memory for the results of " + std::to_string(tiling.splits) + " splits";
  }
  const Shape shape = {map.n,          map.k,          static_cast<int>(map.h * map.w), static_cast<int>(tiling.chunk),
                       Divider(map.w), Divider(map.k), Divider(tiling.splits),          out,
                       tiling.partial, tiling.tickets};
  switch (tiling.layout) {
    case Layout::kRows:
      if (tiling.piece > 0) return launch_pieces<Operand, kFull>(name, operand, shape, tiling.piece, device, stream);
      if (tiling.vector == kFull)
        return launch_rows<Operand, Layout::kRows, kFull>(name, operand, shape, device, stream);
      return launch_rows<Operand, Layout::kRows, 1>(name, operand, shape, device, stream);
    case Layout::kChannels:
      if (tiling.vector == kFull) {
        return launch_channels<Operand, kFull>(name, operand, shape, tiling.block_k, device, stream);
      }
      return launch_channels<Operand, 1>(name, operand, shape, tiling.block_k, device, stream);
    case Layout::kPieces:
    case Layout::kStrided: break;
  }
  return launch_rows<Operand, Layout::kStrided, 1>(name, operand, shape, device, stream);
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

// Counts of active units, whether windows hold some, and the norm of the counts: the end of a forward GAIA-Z program,
// in one launch over all maps. A block counts a tile of one map of one image and adds what it finds to the image's
// scratch with integer atomics, whose order does not matter; the last block of an image makes the results of it.
#include <algorithm>
#include <cstddef>
#include <type_traits>

#include "norm.h"

namespace gaia::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBlocks = 4;  // on a multiprocessor, at least, of the norm of the paper: others need more registers
constexpr int kSteps = 4;   // vectors in flight
constexpr int kVectors = kThreads * kSteps;  // of a tile: 16 KiB
constexpr int kSingles = 8;                  // elements in flight where they are read one by one
constexpr int kSpan = 128;                   // columns that a warp takes at a time, of
constexpr int kSpans = 4;                    // so many layers

constexpr unsigned kAll = 0xffffffffu;

// How a tile of a map is read.
enum class Reading {
  kFlat,                 // channels follow each other without a gap: 16 bytes, wherever channels begin
  kChannels,             // the channels of a position lie side by side: 16 bytes of them
  kSingles,              // anything else: one by one, the threads side by side along positions,
  kSinglesOverChannels,  // or along channels
};

// A map, and how it is cut: tiles of tile_k channels x tile_p positions, those of a block of channels next to each
// other.
struct Entry {
  const void* data;
  int64_t stride_n;
  int stride_k, stride_h, stride_w;
  int channels, positions, width;
  unsigned limit;  // the largest bits of an active element
  int counts;      // where its counts begin in the scratch
  int tile_k, tile_p, blocks_p;
  unsigned char reading, fast;  // the latter: log2 of the threads side by side
  unsigned short first_window, windows;
};

struct Given {
  const float* data;
  int64_t stride_n, stride_k;
};

// Columns of a layer: `from` in the scratch, or of a sum, `to` in the packed row.
struct Span {
  int from, to, width, sum;  // sum: -1 for the scratch
};

// The positions of a window: rows x columns of them. Its bits begin at `words` in the scratch, the flag of a NaN
// follows them; `to` is its column of the result.
struct Positions {
  int begin, step, rows, columns, words, to;
};

// The greatest power of two that is below a number.
constexpr int half_of(int number) {
  int half = 1;
  while (2 * half < number) half *= 2;
  return half;
}

// How many maps, sums, spans and windows a launch takes. All that it needs to know travels in its arguments, so nothing
// is copied to the device: in as few as most networks need, or in as many as there is room for. CUDA before 12.1 has
// room for 4 KB.
template <int M, int S, int L, int P>
struct Sizes {
  static constexpr int kMaps = M, kSums = S, kSpanCount = L, kWindows = P;
  static constexpr int kFirstStep = half_of(M);  // of the search for a tile's map
};
#if defined(GAIA_CUDA_EMULATED) || CUDART_VERSION >= 12010
using Few = Sizes<64, 16, 128, 32>;
using Many = Sizes<200, 200, 256, 200>;
constexpr size_t kArguments = 32764;
#else
using Few = Sizes<16, 4, 32, 8>;
using Many = Sizes<24, 8, 48, 12>;
constexpr size_t kArguments = 4096;
#endif

template <class Size>
struct Table {
  int maps, spans, windows, tiles;  // tiles of an image, at least 1
  int scratch_size, columns;
  Norm norm;
  unsigned infinity;  // its bits
  double p;
  int* scratch;
  float* packed;
  float* live;
  float* score;
  int first_tile[Size::kMaps + 1];  // apart from the rest: all of them are looked through
  Entry map[Size::kMaps];
  Given sum[Size::kSums];
  Span span[Size::kSpanCount];
  double inverse_area[Size::kSpanCount];
  Positions window[Size::kWindows];
};
static_assert(sizeof(Table<Few>) <= kArguments && sizeof(Table<Many>) <= kArguments, "see kArguments");

struct Shared {
  unsigned active[kVectors / 4];     // a byte for each vector, a bit for each element; or a bit for each position
  unsigned unknown[kVectors / 4];    // likewise: NaN
  unsigned counts[kThreads * 4];     // of the tile's channels
  unsigned words[kVectors / 4 + 2];  // of a window's bits
  double partial[kWarps];
  int nan, last;
};

// Elements of `kItem` bytes by their bits.
template <int kItem>
struct Bits {
  static constexpr int kVector = 16 / kItem;
  static constexpr unsigned kMagnitude = kItem == 2 ? 0x7fffu : 0x7fffffffu;
  using Storage = std::conditional_t<kItem == 2, uint16_t, uint32_t>;

  static __device__ unsigned element(const unsigned (&quad)[4], int v) {
    return kItem == 2 ? (v % 2 == 0 ? quad[v / 2] & 0xffffu : quad[v / 2] >> 16) : quad[v];
  }
};

struct alignas(16) Quad {
  unsigned word[4];
};

// One unsigned comparison: 0 and everything negative, -0.0 included, wraps around or is too large, and so is a NaN.
__device__ __forceinline__ bool is_active(unsigned bits, unsigned limit) { return bits - 1u < limit; }
template <int kItem>
__device__ __forceinline__ bool is_nan(unsigned bits, unsigned infinity) {
  return (bits & Bits<kItem>::kMagnitude) > infinity;
}

// A tile of a map: channels [k0, k1) and positions [p0, p1) of one image.
struct Tile {
  const Entry& map;
  int64_t n;
  int k0, k1, p0, p1;
  bool watched;  // whether there are windows on the map
  unsigned infinity;
  int* scratch;  // of the image
};

// Sets a position's bit where the ballot has one in the segment of threads that hold its channels; one of them does.
__device__ __forceinline__ void mark(unsigned* bits, int position, unsigned ballot, unsigned segment, bool leads) {
  if (leads && (ballot & segment) != 0) atomicOr(&bits[position / 32], 1u << position % 32);
}

__device__ __forceinline__ void clear(Shared& shared, int counts) {
  const int self = static_cast<int>(threadIdx.x);
  for (int i = self; i < counts; i += kThreads) shared.counts[i] = 0;
  for (int i = self; i < kVectors / 4; i += kThreads) shared.active[i] = shared.unknown[i] = 0;
  __syncthreads();
}

// Writes what windows of the map find at the tile's positions. `test(position, first, step, &some, &unknown)` looks at
// every `step`-th channel of the tile from `first` on.
template <class Table, class Test>
__device__ __forceinline__ void look_through_windows(const Table& table, const Tile& tile, Shared& shared, int channels,
                                                     const Test& test) {
  const Entry& map = tile.map;
  const int self = static_cast<int>(threadIdx.x);
  for (int j = map.first_window; j < map.first_window + map.windows; ++j) {
    const Positions& grid = table.window[j];
    // How many of the grid's positions come before one of the map's.
    const auto before = [&](int position) {
      const int row = position / map.width, column = position - row * map.width;
      const int rows = row <= grid.begin ? 0 : (row - grid.begin - 1) / grid.step + 1;
      const int columns = column <= grid.begin ? 0 : (column - grid.begin - 1) / grid.step + 1;
      if (rows >= grid.rows) return grid.rows * grid.columns;
      return rows * grid.columns +
             (row == grid.begin + rows * grid.step ? (columns < grid.columns ? columns : grid.columns) : 0);
    };
    const int first = before(tile.p0), last = before(tile.p1);
    if (first >= last) continue;
    const int first_word = first / 32, words = (last - 1) / 32 - first_word + 1;
    for (int i = self; i < words; i += kThreads) shared.words[i] = 0;
    if (self == 0) shared.nan = 0;
    __syncthreads();
    // Where the grid has few positions, several threads share the channels of one.
    int along = kThreads;
    while (along > 1 && along / 2 >= last - first && kThreads / along < channels) along /= 2;
    for (int g = first + self % along; g < last; g += along) {
      const int row = g / grid.columns, column = g - row * grid.columns;
      const int position = (grid.begin + row * grid.step) * map.width + grid.begin + column * grid.step;
      bool some = false, unknown = false;
      test(position - tile.p0, self / along, kThreads / along, some, unknown);
      if (some) atomicOr(&shared.words[g / 32 - first_word], 1u << g % 32);
      if (unknown) shared.nan = 1;
    }
    __syncthreads();
    unsigned* const bits = reinterpret_cast<unsigned*>(tile.scratch + grid.words);
    for (int i = self; i < words; i += kThreads) {
      if (shared.words[i] != 0) atomicOr(&bits[first_word + i], shared.words[i]);
    }
    if (self == 0 && shared.nan != 0) atomicOr(&bits[(grid.rows * grid.columns + 31) / 32], 1u);
    __syncthreads();
  }
}

// What the windows find where shared memory has a bit for each position of the tile.
template <class Table>
__device__ __forceinline__ void look_at_positions(const Table& table, const Tile& tile, Shared& shared) {
  look_through_windows(table, tile, shared, 1, [&](int position, int, int, bool& some, bool& unknown) {
    some = (shared.active[position / 32] >> position % 32 & 1u) != 0;
    unknown = (shared.unknown[position / 32] >> position % 32 & 1u) != 0;
  });
}

// Contiguous elements, of several channels or of a part of one: a bit for each in shared memory, of which the channels
// are then counted. Vectors lie at multiples of 16 bytes, wherever channels and images begin.
template <int kItem, class Table>
__device__ __forceinline__ void count_flat(const Table& table, const Tile& tile, Shared& shared) {
  using B = Bits<kItem>;
  constexpr int V = B::kVector;
  const Entry& map = tile.map;
  const int self = static_cast<int>(threadIdx.x);
  const auto* const image = static_cast<const typename B::Storage*>(map.data) + tile.n * map.stride_n;
  const int shift = static_cast<int>(reinterpret_cast<uintptr_t>(image) % 16) / kItem;
  const int64_t all = static_cast<int64_t>(map.channels) * map.positions;
  const int64_t begin = static_cast<int64_t>(tile.k0) * map.positions + tile.p0;
  const int elements = (tile.k1 - tile.k0 - 1) * map.positions + tile.p1 - tile.p0;
  const int lead = static_cast<int>((begin + shift) % V);  // elements of the first vector that are not the tile's
  const int64_t origin = begin - lead;
  const int vectors = (lead + elements + V - 1) / V;

  Quad quads[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int v = self + s * kThreads;
    const int64_t at = origin + static_cast<int64_t>(v) * V;
    quads[s] = Quad{};
    if (v >= vectors) continue;
    if (at >= 0 && at + V <= all) {
      quads[s] = *reinterpret_cast<const Quad*>(image + at);
    } else {  // partly outside the image: nothing there is read
#pragma unroll
      for (int i = 0; i < V; ++i) {
        if (at + i < 0 || at + i >= all) continue;
        quads[s].word[i * kItem / 4] |= static_cast<unsigned>(image[at + i]) << i * kItem % 4 * 8;
      }
    }
  }
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int v = self + s * kThreads;
    if (v >= vectors) continue;
    unsigned active = 0, unknown = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      active |= static_cast<unsigned>(is_active(B::element(quads[s].word, i), map.limit)) << i;
    }
    reinterpret_cast<unsigned char*>(shared.active)[v] = static_cast<unsigned char>(active);
    if (tile.watched) {
#pragma unroll
      for (int i = 0; i < V; ++i) {
        unknown |= static_cast<unsigned>(is_nan<kItem>(B::element(quads[s].word, i), tile.infinity)) << i;
      }
      reinterpret_cast<unsigned char*>(shared.unknown)[v] = static_cast<unsigned char>(unknown);
    }
  }
  __syncthreads();

  const auto bit_of = [&](int element) { return (lead + element) / V * 8 + (lead + element) % V; };
  const int channels = tile.k1 - tile.k0, positions = tile.p1 - tile.p0;
  int lanes = kWarp;
  while (lanes > 1 && lanes * channels > kThreads) lanes /= 2;
  const int lane = self % lanes;
  for (int group = 0; group < channels; group += kThreads / lanes) {
    const int channel = group + self / lanes;
    int count = 0;
    if (channel < channels) {
      const int first = bit_of(channel * map.positions), last = bit_of(channel * map.positions + positions - 1);
      for (int word = first / 32 + lane; word <= last / 32; word += lanes) {
        unsigned bits = shared.active[word];
        if (word == first / 32) bits &= kAll << first % 32;
        if (word == last / 32) bits &= kAll >> (31 - last % 32);
        count += __popc(bits);
      }
    }
    for (int distance = lanes / 2; distance > 0; distance /= 2) count += __shfl_xor_sync(kAll, count, distance);
    if (lane == 0 && count != 0) atomicAdd(&tile.scratch[map.counts + tile.k0 + channel], count);
  }
  if (!tile.watched) return;
  look_through_windows(table, tile, shared, channels,
                       [&](int position, int first, int step, bool& some, bool& unknown) {
                         for (int channel = first; channel < channels; channel += step) {
                           const int bit = bit_of(channel * map.positions + position);
                           some |= (shared.active[bit / 32] >> bit % 32 & 1u) != 0;
                           unknown |= (shared.unknown[bit / 32] >> bit % 32 & 1u) != 0;
                         }
                       });
}

// Contiguous channels: threads side by side hold a vector of them each, at up to kSteps positions. Counts go in pairs,
// 16 bits each, which a tile's positions cannot overflow.
template <int kItem, class Table>
__device__ __forceinline__ void count_channels(const Table& table, const Tile& tile, Shared& shared) {
  using B = Bits<kItem>;
  constexpr int V = B::kVector, kPairs = V / 2;
  const Entry& map = tile.map;
  const int self = static_cast<int>(threadIdx.x);
  const int columns = 1 << map.fast, column = self % columns, line = self / columns, lines = kThreads / columns;
  const int k = tile.k0 + column * V;
  const bool inside = k < tile.k1;
  clear(shared, columns * kPairs);

  const auto* const first =
      static_cast<const typename B::Storage*>(map.data) + tile.n * map.stride_n + (inside ? k : 0);
  Quad quads[kSteps];
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    const int position = tile.p0 + line + s * lines;
    quads[s] = Quad{};
    if (inside && position < tile.p1) {
      quads[s] = *reinterpret_cast<const Quad*>(first + static_cast<int64_t>(position) * map.stride_w);
    }
  }
  unsigned counts[kPairs] = {};
  const int side_by_side = columns < kWarp ? columns : kWarp;
  const unsigned segment = kAll >> (kWarp - side_by_side) << self % kWarp / side_by_side * side_by_side;
  const bool leads = self % side_by_side == 0;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
    unsigned some = 0;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const unsigned pair = static_cast<unsigned>(is_active(B::element(quads[s].word, 2 * i), map.limit)) |
                            static_cast<unsigned>(is_active(B::element(quads[s].word, 2 * i + 1), map.limit)) << 16;
      counts[i] += pair;
      some |= pair;
    }
    if (tile.watched) {
      bool unknown = false;
#pragma unroll
      for (int i = 0; i < V; ++i) unknown |= is_nan<kItem>(B::element(quads[s].word, i), tile.infinity);
      const int position = line + s * lines;
      mark(shared.active, position, __ballot_sync(kAll, some != 0), segment, leads);
      mark(shared.unknown, position, __ballot_sync(kAll, unknown), segment, leads);
    }
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    for (int distance = side_by_side; distance < kWarp; distance *= 2) {
      counts[i] += __shfl_xor_sync(kAll, counts[i], distance);
    }
    if (self % kWarp < side_by_side && counts[i] != 0) atomicAdd(&shared.counts[i * columns + column], counts[i]);
  }
  __syncthreads();
  for (int channel = self; channel < tile.k1 - tile.k0; channel += kThreads) {
    const unsigned pair = shared.counts[channel % V / 2 * columns + channel / V];
    const int count = static_cast<int>(channel % 2 == 0 ? pair & 0xffffu : pair >> 16);
    if (count != 0) atomicAdd(&tile.scratch[map.counts + tile.k0 + channel], count);
  }
  if (tile.watched) look_at_positions(table, tile, shared);
}

// Any strides: a thread stays at its position and goes over channels, or the other way round.
template <int kItem, bool kOverChannels, class Table>
__device__ __forceinline__ void count_singles(const Table& table, const Tile& tile, Shared& shared) {
  using B = Bits<kItem>;
  const Entry& map = tile.map;
  const int self = static_cast<int>(threadIdx.x);
  const int fast = 1 << map.fast, slow = kThreads / fast;
  const int channels = tile.k1 - tile.k0, positions = tile.p1 - tile.p0;
  clear(shared, channels);

  const auto* const first = static_cast<const typename B::Storage*>(map.data) + tile.n * map.stride_n;
  const int own = self % fast;
  int other = self / fast;
  const int from = tile.p0 + (kOverChannels ? other : own);
  int row = from / map.width, column = from - row * map.width;
  const int down = slow / map.width,
            across = slow - down * map.width;  // from one of the thread's positions to the next
  unsigned elements[kSingles];
#pragma unroll
  for (int s = 0; s < kSingles; ++s) {
    const int channel = kOverChannels ? own : other + s * slow, position = kOverChannels ? other + s * slow : own;
    elements[s] = 0;
    if (channel < channels && position < positions) {
      elements[s] = first[static_cast<int64_t>(tile.k0 + channel) * map.stride_k +
                          static_cast<int64_t>(row) * map.stride_h + static_cast<int64_t>(column) * map.stride_w];
    }
    if (kOverChannels) {
      row += down;
      column += across;
      if (column >= map.width) {
        column -= map.width;
        ++row;
      }
    }
  }
  const int side_by_side = fast < kWarp ? fast : kWarp;
  const unsigned segment = kAll >> (kWarp - side_by_side) << self % kWarp / side_by_side * side_by_side;
  const bool leads = self % side_by_side == 0;
  unsigned count = 0;
  bool some = false, unknown = false;
#pragma unroll
  for (int s = 0; s < kSingles; ++s, other += slow) {
    const bool active = is_active(elements[s], map.limit), is_unknown = is_nan<kItem>(elements[s], tile.infinity);
    const unsigned together = __ballot_sync(kAll, active);
    if (kOverChannels) {
      count += active;
      if (tile.watched) {
        mark(shared.active, other, together, segment, leads);
        mark(shared.unknown, other, __ballot_sync(kAll, is_unknown), segment, leads);
      }
    } else {
      some |= active;
      unknown |= is_unknown;
      const unsigned found = static_cast<unsigned>(__popc(together & segment));
      if (leads && found != 0) atomicAdd(&shared.counts[other], found);
    }
  }
  if (kOverChannels && count != 0) atomicAdd(&shared.counts[own], count);
  if (!kOverChannels && tile.watched) {
    if (some) atomicOr(&shared.active[own / 32], 1u << own % 32);
    if (unknown) atomicOr(&shared.unknown[own / 32], 1u << own % 32);
  }
  __syncthreads();
  for (int channel = self; channel < channels; channel += kThreads) {
    const int found = static_cast<int>(shared.counts[channel]);
    if (found != 0) atomicAdd(&tile.scratch[map.counts + tile.k0 + channel], found);
  }
  if (tile.watched) look_at_positions(table, tile, shared);
}

// Writes the results of an image, of which everything is in the scratch by now, and leaves zeros there.
template <Norm N, class Table>
__device__ __forceinline__ void finish(const Table& table, int64_t n, int* scratch, Shared& shared) {
  const int self = static_cast<int>(threadIdx.x), warp = self / kWarp, lane = self % kWarp;
  float* const packed = table.packed + n * table.columns;
  double total = 0.0;
  for (int span = warp; span < table.spans; span += kWarps * kSpans) {
    int widest = 0;
#pragma unroll
    for (int s = 0; s < kSpans; ++s) {
      const int index = span + s * kWarps;
      if (index < table.spans && table.span[index].width > widest) widest = table.span[index].width;
    }
    for (int offset = 0; offset < widest; offset += kSpan) {
      float counts[kSpans][kSpan / kWarp];
#pragma unroll
      for (int s = 0; s < kSpans; ++s) {
        const int index = span + s * kWarps;
        if (index >= table.spans) continue;
        const Span& each = table.span[index];
        const float* given = nullptr;
        int64_t stride = 0;
        if (each.sum >= 0) {
          const Given& sum = table.sum[each.sum];
          stride = sum.stride_k;
          given = sum.data + n * sum.stride_n + each.from * stride;
        }
#pragma unroll
        for (int i = 0; i < kSpan / kWarp; ++i) {
          const int column = offset + i * kWarp + lane;
          if (column >= each.width) continue;
          counts[s][i] =
              given != nullptr ? given[column * stride] : static_cast<float>(__ldcg(&scratch[each.from + column]));
        }
      }
#pragma unroll
      for (int s = 0; s < kSpans; ++s) {
        const int index = span + s * kWarps;
        if (index >= table.spans) continue;
        const Span& each = table.span[index];
        const double factor = table.inverse_area[index];
#pragma unroll
        for (int i = 0; i < kSpan / kWarp; ++i) {
          const int column = offset + i * kWarp + lane;
          if (column >= each.width) continue;
          packed[each.to + column] = counts[s][i];
          total = merged<N>(total, power<N>(fabs(static_cast<double>(counts[s][i]) * factor), table.p));
        }
      }
    }
  }
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    total = merged<N>(total, __shfl_xor_sync(kAll, total, distance));
  }
  if (lane == 0) shared.partial[warp] = total;

  for (int first = 0; first < table.windows; first += kWarps) {  // all warps as often: the emulation counts ballots
    const bool any = first + warp < table.windows;
    const Positions& grid = table.window[any ? first + warp : first];
    const int positions = grid.rows * grid.columns, words = (positions + 31) / 32;
    const unsigned* const bits = reinterpret_cast<const unsigned*>(scratch + grid.words);
    bool holds = __ldcg(&bits[words]) == 0;
    for (int word = lane; word < words; word += kWarp) {
      const unsigned expected = word < positions / 32 ? kAll : (1u << positions % 32) - 1u;
      holds = holds && __ldcg(&bits[word]) == expected;
    }
    const unsigned together = __ballot_sync(kAll, holds);
    if (any && lane == 0) table.live[n * table.windows + grid.to] = together == kAll ? 1.0f : 0.0f;
  }
  __syncthreads();  // everything has been read
  for (int i = self; i < table.scratch_size; i += kThreads) scratch[i] = 0;
  if (self != 0) return;
  for (int other = 1; other < kWarps; ++other) total = merged<N>(total, shared.partial[other]);
  table.score[n] = static_cast<float>(root<N>(total, table.p));
}

template <int kItem, bool kSquares, class Size>
__global__ void __launch_bounds__(kThreads, kSquares ? kBlocks : kBlocks / 2)
    count_and_score_kernel(const __grid_constant__ Table<Size> table) {
  __shared__ Shared shared;
  const int64_t n = blockIdx.x / static_cast<unsigned>(table.tiles);
  const int index = static_cast<int>(blockIdx.x % static_cast<unsigned>(table.tiles));
  int* const scratch = table.scratch + n * table.scratch_size;
  if (index < table.first_tile[table.maps]) {
    int found = 0;
#pragma unroll
    for (int step = Size::kFirstStep; step > 0; step /= 2) {
      if (found + step < table.maps && table.first_tile[found + step] <= index) found += step;
    }
    const Entry& map = table.map[found];
    const int local = index - table.first_tile[found];
    const int k0 = local / map.blocks_p * map.tile_k, p0 = local % map.blocks_p * map.tile_p;
    const int k1 = map.channels - k0 < map.tile_k ? map.channels : k0 + map.tile_k;
    const int p1 = map.positions - p0 < map.tile_p ? map.positions : p0 + map.tile_p;
    const Tile tile = {map, n, k0, k1, p0, p1, map.windows != 0, table.infinity, scratch};
    switch (static_cast<Reading>(map.reading)) {
      case Reading::kFlat: count_flat<kItem>(table, tile, shared); break;
      case Reading::kChannels: count_channels<kItem>(table, tile, shared); break;
      case Reading::kSingles: count_singles<kItem, false>(table, tile, shared); break;
      case Reading::kSinglesOverChannels: count_singles<kItem, true>(table, tile, shared); break;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();  // what the block found is there before its ticket is
    shared.last = atomicAdd(&scratch[table.scratch_size - 1], 1) == table.tiles - 1;
    __threadfence();
  }
  __syncthreads();
  if (shared.last == 0) return;
  if (kSquares) {
    finish<Norm::kTwo>(table, n, scratch, shared);
  } else if (table.norm == Norm::kOne) {
    finish<Norm::kOne>(table, n, scratch, shared);
  } else if (table.norm == Norm::kInfinity) {
    finish<Norm::kInfinity>(table, n, scratch, shared);
  } else {
    finish<Norm::kOther>(table, n, scratch, shared);
  }
}

int log2_of(int64_t number) {  // the least power of two that is not below it
  int result = 0;
  while ((int64_t{1} << result) < number) ++result;
  return result;
}

// Cuts an axis into so many blocks that none is larger than `most`, all of about one size, multiples of `unit`.
int64_t block_of(int64_t size, int64_t most, int64_t unit) {
  const int64_t even = ceil_div(size, ceil_div(size, most));
  return std::min(ceil_div(even, unit) * unit, most);
}

// Decides how a map is read and cut; returns its number of tiles.
int64_t cut(const gaia_map& map, int item, Entry& entry) {
  const int64_t positions = map.h * map.w, vector = 16 / item;
  if (map.k == 0 || positions == 0) {
    entry.blocks_p = 1;
    return 0;
  }
  const bool collapsed = map.h == 1 || map.stride_h == map.w * map.stride_w;
  const auto whole = [&](int64_t elements) { return elements % vector == 0; };
  const bool aligned = reinterpret_cast<uintptr_t>(map.data) % 16 == 0 && (map.n == 1 || whole(map.stride_n));
  int64_t tile_k, tile_p;
  if (collapsed && (map.w == 1 || map.stride_w == 1) && (map.w > 1 || map.h == 1 || map.stride_h == 1) &&
      (map.k == 1 || map.stride_k == positions)) {
    entry.reading = static_cast<unsigned char>(Reading::kFlat);
    // Where a tile may begin within a vector, it takes part of one more.
    const int64_t most = (aligned && whole(positions) ? kVectors : kVectors - 1) * vector;
    if (positions <= most) {
      tile_k = block_of(map.k, most / positions, 1);
      tile_p = positions;
    } else {
      tile_k = 1;
      tile_p = block_of(positions, most, vector);
    }
  } else if (collapsed && map.stride_k == 1 && aligned && whole(map.k) && (positions == 1 || whole(map.stride_w))) {
    entry.reading = static_cast<unsigned char>(Reading::kChannels);
    // Few positions leave more threads to the channels; of a few channels a row of memory is read all the same.
    const int lines = std::min(log2_of(ceil_div(positions, kSteps)), 5);
    entry.fast = static_cast<unsigned char>(std::min(log2_of(map.k / vector), 8 - lines));
    tile_k = vector << entry.fast;
    tile_p = block_of(positions, kVectors >> entry.fast, 1);
  } else if (map.k > 1 && map.stride_k == 1) {
    entry.reading = static_cast<unsigned char>(Reading::kSinglesOverChannels);
    entry.fast = static_cast<unsigned char>(std::min(log2_of(map.k), 8));
    tile_k = int64_t{1} << entry.fast;
    tile_p = kSingles * kThreads >> entry.fast;
  } else {
    entry.reading = static_cast<unsigned char>(Reading::kSingles);
    entry.fast = static_cast<unsigned char>(std::min(log2_of(positions), 8));
    tile_p = int64_t{1} << entry.fast;
    tile_k = std::min(kSingles * kThreads >> entry.fast, kThreads * 4);
  }
  entry.tile_k = static_cast<int>(tile_k);
  entry.tile_p = static_cast<int>(tile_p);
  entry.blocks_p = static_cast<int>(ceil_div(positions, tile_p));
  return ceil_div(map.k, tile_k) * entry.blocks_p;
}

constexpr int64_t kLargest = 0x7fffffff;

int item_of(const CountAndScore& problem) { return problem.dtype == GAIA_FLOAT32 ? 4 : 2; }

bool fits(int64_t number) { return -kLargest <= number && number <= kLargest; }

// The layers in pieces of `piece` columns.
std::vector<Span> spans_of(const CountAndScore& problem, const std::vector<int64_t>& counts, int64_t piece,
                           std::vector<double>& inverse_area) {
  std::vector<Span> spans;
  inverse_area.clear();
  int64_t to = 0;
  for (size_t l = 0; l < problem.layers.size(); ++l) {
    const size_t source = static_cast<size_t>(problem.layers[l]);
    const bool counted = source < problem.maps.size();
    const size_t sum = counted ? 0 : source - problem.maps.size();
    const int64_t width = counted ? problem.maps[source].map.k : problem.sums[sum].k;
    const int64_t from = counted ? counts[source] : 0;
    for (int64_t k = 0; k < width; k += piece) {
      spans.push_back({static_cast<int>(from + k), static_cast<int>(to + k),
                       static_cast<int>(std::min(piece, width - k)), counted ? -1 : static_cast<int>(sum)});
      inverse_area.push_back(problem.inverse_area[l]);
    }
    to += width;
  }
  return spans;
}

// Fills in the table of a launch, all but its results; returns what is wrong.
template <class Size>
std::string fill(const CountAndScore& problem, Table<Size>& table) {
  const std::string name = "count_and_score: ";
  const size_t maps = problem.maps.size();
  const auto beyond = [&](const char* what, size_t count, int most) {
    return name + std::to_string(count) + " " + what + "; at most " + std::to_string(most) +
           " fit into a kernel's arguments: make several calls, or ask for backend 'torch'";
  };
  if (maps > Size::kMaps) return beyond("maps", maps, Size::kMaps);
  if (problem.sums.size() > Size::kSums) return beyond("sums", problem.sums.size(), Size::kSums);
  if (problem.windows.size() > Size::kWindows) return beyond("windows", problem.windows.size(), Size::kWindows);

  std::vector<bool> counted(maps);
  for (const int64_t source : problem.layers) {
    if (source < static_cast<int64_t>(maps)) counted[source] = true;
  }
  std::vector<int64_t> counts;
  int64_t scratch = 0, tiles = 0;
  for (const CountedMap& each : problem.maps) {
    counts.push_back(scratch);
    scratch += each.map.k;
  }
  int windows = 0;
  for (size_t m = 0; m < maps; ++m) {
    const gaia_map& map = problem.maps[m].map;
    Entry& entry = table.map[m];
    if (!fits(map.stride_k) || !fits(map.stride_h) || !fits(map.stride_w) || !fits(scratch)) {
      return name + "a map, or its strides, of more than 2**31 - 1 elements; make it contiguous";
    }
    entry.data = map.data;
    entry.stride_n = map.stride_n;
    entry.stride_k = static_cast<int>(map.stride_k);
    entry.stride_h = static_cast<int>(map.stride_h);
    entry.stride_w = static_cast<int>(map.stride_w);
    entry.channels = static_cast<int>(map.k);
    entry.positions = static_cast<int>(map.h * map.w);
    entry.width = static_cast<int>(map.w);
    entry.limit = problem.maps[m].limit;
    entry.counts = static_cast<int>(counts[m]);
    entry.first_window = static_cast<unsigned short>(windows);
    // Those of a map next to each other, whatever the callers' order.
    for (size_t j = 0; j < problem.windows.size(); ++j) {
      const Window& window = problem.windows[j];
      if (window.map != static_cast<int64_t>(m)) continue;
      const auto along = [&](int64_t size) {
        return static_cast<int>(window.begin < size ? ceil_div(size - window.begin, window.step) : 0);
      };
      Positions& grid = table.window[windows++];
      grid = {static_cast<int>(std::min(window.begin, kLargest)),
              static_cast<int>(std::min(window.step, kLargest)),
              along(map.h),
              along(map.w),
              static_cast<int>(scratch),
              static_cast<int>(j)};
      scratch += ceil_div(static_cast<int64_t>(grid.rows) * grid.columns, 32) + 1;
    }
    entry.windows = static_cast<unsigned short>(windows - entry.first_window);
    table.first_tile[m] = static_cast<int>(tiles);
    tiles += counted[m] || entry.windows > 0 ? cut(map, item_of(problem), entry) : 0;
    if (!fits(tiles)) return name + "maps of more than 2**31 - 1 tiles";
  }
  table.first_tile[maps] = static_cast<int>(tiles);
  if (++scratch != problem.scratch_size || !fits(scratch)) {
    return name + "scratch of " + std::to_string(problem.scratch_size) + " numbers an image instead of " +
           std::to_string(scratch);
  }

  std::vector<double> inverse_area;
  std::vector<Span> spans = spans_of(problem, counts, kSpan, inverse_area);
  for (int64_t piece = 2 * kSpan; spans.size() > Size::kSpanCount && piece < kLargest; piece *= 2) {
    spans = spans_of(problem, counts, piece, inverse_area);
  }
  if (spans.size() > Size::kSpanCount) return beyond("layers", problem.layers.size(), Size::kSpanCount);
  std::copy(spans.begin(), spans.end(), table.span);
  std::copy(inverse_area.begin(), inverse_area.end(), table.inverse_area);
  for (size_t s = 0; s < problem.sums.size(); ++s) {
    table.sum[s] = {problem.sums[s].data, problem.sums[s].stride_n, problem.sums[s].stride_k};
  }
  int64_t columns = 0;
  for (const Span& span : spans) columns += span.width;
  if (!fits(columns)) return name + "more than 2**31 - 1 columns";
  table.maps = static_cast<int>(maps);
  table.spans = static_cast<int>(spans.size());
  table.windows = windows;
  table.tiles = static_cast<int>(std::max<int64_t>(tiles, 1));
  table.scratch_size = static_cast<int>(scratch);
  table.columns = static_cast<int>(columns);
  table.norm = norm_of(problem.p);
  table.infinity = problem.dtype == GAIA_FLOAT32 ? 0x7f800000u : problem.dtype == GAIA_FLOAT16 ? 0x7c00u : 0x7f80u;
  table.p = problem.p;
  table.scratch = problem.scratch;
  table.packed = problem.packed;
  table.live = problem.live;
  table.score = problem.score;
  return {};
}

template <class Size>
std::string launch_filled(const CountAndScore& problem, int device, Stream stream) {
  Table<Size> table = {};
  const std::string error = fill(problem, table);
  if (!error.empty()) return error;
  const Grid grid = {problem.n * table.tiles, kThreads};
  const auto run = [&](auto* kernel) { return launch("count_and_score", kernel, grid, device, stream, table); };
  const bool squares = problem.p == 2.0;
  if (item_of(problem) == 4) {
    return squares ? run(count_and_score_kernel<4, true, Size>) : run(count_and_score_kernel<4, false, Size>);
  }
  return squares ? run(count_and_score_kernel<2, true, Size>) : run(count_and_score_kernel<2, false, Size>);
}

}  // namespace

CountAndScoreLimits count_and_score_limits() { return {Many::kMaps, Many::kSums, Many::kSpanCount, Many::kWindows}; }

std::string count_and_score(const CountAndScore& problem, int device, Stream stream) {
  const bool few = problem.maps.size() <= Few::kMaps && problem.sums.size() <= Few::kSums &&
                   problem.layers.size() <= Few::kSpanCount && problem.windows.size() <= Few::kWindows;
  return few ? launch_filled<Few>(problem, device, stream) : launch_filled<Many>(problem, device, stream);
}

}  // namespace gaia::cuda

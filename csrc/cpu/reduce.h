// Channel moments of whatever a kernel reads, over every memory layout. A kernel hands in a Map; map.run(n, k, h, w,
// over_channels) gives a Run: consecutive values from there on, along the positions of one channel or over channels.
// A Run reads by vector(i), part(i, count) and scalar(), and may write what it computes on the way.
// Only for level.cpp; see simd.h for why.
#pragma once

#include "cpu/tuning.h"

namespace {

// The running moments of kLanes interleaved partial rows, or of kLanes channels.
struct Moments {
  Vec sum;
  Vec abs_sum;
  IntVec nonzero;

  void add(Vec g) {
    const IntVec magnitude = (IntVec)g & 0x7fffffff;
    sum += g;
    abs_sum += (Vec)magnitude;
    count_nonzero(nonzero, magnitude);
  }
  void merge(const Moments& other) {
    sum += other.sum;
    abs_sum += other.abs_sum;
    nonzero += other.nonzero;
  }
};

constexpr Moments kNoMoments = {};

// Sums of sums: after kChain additions a level is folded into the next one, so that the rounding error of long rows
// stays near that of pairwise summation. (Not compensated summation: it would turn infinities into NaN.)
constexpr int64_t kChain = 32;

// What a run is read by: four vectors, one for each accumulator.
constexpr int64_t kStep = 4 * kLanes;

struct Cascade {
  static constexpr int kLevels = 3;
  Moments level[kLevels] = {kNoMoments, kNoMoments, kNoMoments};
  int64_t added = 0;

  void add(const Moments& part) {
    level[0].merge(part);
    ++added;
    for (int64_t i = 0, full = kChain; i + 1 < kLevels && added % full == 0; ++i, full *= kChain) {
      level[i + 1].merge(level[i]);
      level[i] = kNoMoments;
    }
  }
  Moments total() const {
    Moments all = level[kLevels - 1];
    for (int i = kLevels - 2; i >= 0; --i) all.merge(level[i]);
    return all;
  }
};

template <class T>
inline typename T::Storage* at(const gaia_map& map, int64_t n, int64_t k, int64_t h, int64_t w) {
  return static_cast<typename T::Storage*>(map.data) + n * map.stride_n + k * map.stride_k + h * map.stride_h +
         w * map.stride_w;
}

void store_moments(const gaia_moments& out, int64_t n, int64_t k, int64_t count, Vec sum, Vec abs_sum, IntVec nonzero) {
  const int64_t offset = n * out.stride_n + k;
  const Vec nonzero_float = __builtin_convertvector(nonzero, Vec);
  float* const targets[3] = {out.sum, out.abs_sum, out.nonzero};
  const Vec values[3] = {sum, abs_sum, nonzero_float};
  for (int i = 0; i < 3; ++i) {
    if (targets[i] == nullptr) continue;
    if (count == kLanes) {
      Float32::store(targets[i] + offset, values[i]);
    } else {
      store_part<Float32>(targets[i] + offset, values[i], count);
    }
  }
}

// A run of at most kChain additions to each of four accumulators; of so few that one will do, to one.
template <class Run>
inline Moments short_run_moments(const Run& run, int64_t begin, int64_t end) {
  int64_t i = begin;
  if (end - begin < kStep) {
    Moments total = kNoMoments;
    for (; i + kLanes <= end; i += kLanes) total.add(run.vector(i));
    if (i < end) total.add(run.part(i, end - i));
    return total;
  }
  Moments part[4] = {kNoMoments, kNoMoments, kNoMoments, kNoMoments};
  for (; i + kStep <= end; i += kStep) {
    for (int u = 0; u < 4; ++u) part[u].add(run.vector(i + u * kLanes));
  }
  for (; i + kLanes <= end; i += kLanes) part[0].add(run.vector(i));
  if (i < end) part[1].add(run.part(i, end - i));
  part[0].merge(part[1]);
  part[2].merge(part[3]);
  part[0].merge(part[2]);
  return part[0];
}

template <class Run>
inline Moments run_moments(const Run& run, int64_t length) {
  if (length <= kChain * kStep) return short_run_moments(run, 0, length);
  Cascade blocks;
  for (int64_t i = 0; i < length; i += kChain * kStep) {
    const int64_t end = i + kChain * kStep < length ? i + kChain * kStep : length;
    blocks.add(short_run_moments(run, i, end));
  }
  return blocks.total();
}

// Contiguous H x W rows: kLanes channels at a time, whose horizontal sums are taken together.
template <class Map>
void moments_over_rows(const Map& map, const gaia_map& shape, const gaia_moments& out, int64_t n, int64_t k,
                       int64_t count) {
  Vec sums[kLanes], abs_sums[kLanes];
  IntVec nonzeros[kLanes];
  const int64_t length = shape.h * shape.w;
  for (int64_t r = 0; r < kLanes; ++r) {
    const Moments row = r < count ? run_moments(map.run(n, k + r, 0, 0, false), length) : kNoMoments;
    sums[r] = row.sum;
    abs_sums[r] = row.abs_sum;
    nonzeros[r] = row.nonzero;
  }
  store_moments(out, n, k, count, out.sum != nullptr ? transpose_sum(sums) : Vec{},
                out.abs_sum != nullptr ? transpose_sum(abs_sums) : Vec{},
                out.nonzero != nullptr ? transpose_sum(nonzeros) : IntVec{});
}

// Contiguous channels: kWidth vectors of them are carried over all positions. A whole number of vectors only.
template <int kWidth, class Map>
void moments_over_channels(const Map& map, const gaia_map& shape, const gaia_moments& out, int64_t n, int64_t k) {
  Cascade blocks[kWidth];
  Moments part[kWidth];
  for (int u = 0; u < kWidth; ++u) part[u] = kNoMoments;
  int64_t chain = 0;
  for (int64_t h = 0; h < shape.h; ++h) {
    for (int64_t w = 0; w < shape.w; ++w) {
      const auto run = map.run(n, k, h, w, true);
      for (int u = 0; u < kWidth; ++u) part[u].add(run.vector(u * kLanes));
      if (++chain == kChain) {
        for (int u = 0; u < kWidth; ++u) {
          blocks[u].add(part[u]);
          part[u] = kNoMoments;
        }
        chain = 0;
      }
    }
  }
  for (int u = 0; u < kWidth; ++u) {
    Moments total = blocks[u].total();
    total.merge(part[u]);
    store_moments(out, n, k + u * kLanes, kLanes, total.sum, total.abs_sum, total.nonzero);
  }
}

template <class Map>
void moments_over_last_channels(const Map& map, const gaia_map& shape, const gaia_moments& out, int64_t n, int64_t k,
                                int64_t count) {
  Cascade blocks;
  Moments part = kNoMoments;
  int64_t chain = 0;
  for (int64_t h = 0; h < shape.h; ++h) {
    for (int64_t w = 0; w < shape.w; ++w) {
      part.add(map.run(n, k, h, w, true).part(0, count));
      if (++chain == kChain) {
        blocks.add(part);
        part = kNoMoments;
        chain = 0;
      }
    }
  }
  Moments total = blocks.total();
  total.merge(part);
  store_moments(out, n, k, count, total.sum, total.abs_sum, total.nonzero);
}

// Any strides, one value at a time.
template <class Map>
void moments_over_strides(const Map& map, const gaia_map& shape, const gaia_moments& out, int64_t n, int64_t k) {
  double sum = 0.0, abs_sum = 0.0;
  int64_t nonzero = 0;
  for (int64_t h = 0; h < shape.h; ++h) {
    for (int64_t w = 0; w < shape.w; ++w) {
      const float g = map.run(n, k, h, w, false).scalar();
      const uint32_t magnitude = float_to_bits(g) & 0x7fffffffu;
      sum += g;
      abs_sum += bits_to_float(magnitude);
      nonzero += magnitude != 0;
    }
  }
  const int64_t offset = n * out.stride_n + k;
  if (out.sum != nullptr) out.sum[offset] = static_cast<float>(sum);
  if (out.abs_sum != nullptr) out.abs_sum[offset] = static_cast<float>(abs_sum);
  if (out.nonzero != nullptr) out.nonzero[offset] = static_cast<float>(nonzero);
}

enum class Layout { kRows, kChannels, kStrided };

bool has_contiguous_rows(const gaia_map& map) {
  return (map.w == 1 || map.stride_w == 1) && (map.h == 1 || map.stride_h == map.w);
}

bool has_contiguous_channels(const gaia_map& map) { return map.k == 1 || map.stride_k == 1; }

Layout common_layout(const gaia_map* const* maps, int count) {
  bool rows = true, channels = true;
  for (int i = 0; i < count; ++i) {
    rows = rows && has_contiguous_rows(*maps[i]);
    channels = channels && has_contiguous_channels(*maps[i]);
  }
  if (channels && (!rows || maps[0]->h * maps[0]->w == 1)) return Layout::kChannels;
  return rows ? Layout::kRows : Layout::kStrided;
}

template <class Map>
void reduce(const Map& map, const gaia_map& shape, Layout layout, const gaia_moments& out, int threads) {
  // A block is what one call of a function above handles: results do not depend on how blocks meet threads.
  constexpr int64_t kWidth = sizeof(Vec) == 64 ? 4 : 2;
  const int64_t block = layout == Layout::kRows ? kLanes : layout == Layout::kChannels ? kWidth * kLanes : 1;
  const int64_t blocks = (shape.k + block - 1) / block;
  const int64_t tasks = shape.n * blocks;
  const int64_t bytes = shape.n * shape.k * shape.h * shape.w * Map::kBytes;
  const bool parallel = threads > 1 && tasks > 1 && bytes >= kParallelBytes;
#pragma omp parallel num_threads(threads) if (parallel)
  {
    const FloatMode mode;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t n = task / blocks;
      int64_t k = task % blocks * block;
      const int64_t count = shape.k - k < block ? shape.k - k : block;
      if (layout == Layout::kRows) {
        moments_over_rows(map, shape, out, n, k, count);
      } else if (layout == Layout::kStrided) {
        moments_over_strides(map, shape, out, n, k);
      } else if (count == block) {
        moments_over_channels<kWidth>(map, shape, out, n, k);
      } else {
        const int64_t end = k + count;
        for (; k + kLanes <= end; k += kLanes) moments_over_channels<1>(map, shape, out, n, k);
        if (k < end) moments_over_last_channels(map, shape, out, n, k, end - k);
      }
    }
  }
}

// Calls `kernel` with the element type of `dtype`.
template <class Kernel>
void with_type(gaia_dtype dtype, const Kernel& kernel) {
  switch (dtype) {
    case GAIA_FLOAT32: return kernel(Float32{});
    case GAIA_FLOAT16: return kernel(Float16{});
    case GAIA_BFLOAT16: return kernel(BFloat16{});
  }
}

}  // namespace

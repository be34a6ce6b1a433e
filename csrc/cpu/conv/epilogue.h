// What stands behind a convolution, applied to a block of its outputs while they are in registers. Only for level.cpp.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace {

using gaia::cpu::Convolution;
using gaia::cpu::Map;

// Where a row of outputs goes: its position in y, and the sums of its image; null where there are none.
struct Output {
  int64_t position;
  float* sums;
};

// The vectors of channels from k on, at the position of each of R rows.
template <int R, int V>
struct Rows {
  const float* at[R];
  Rows(const Map& map, const Output* out, int64_t k) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) at[r] = map.data + out[r].position * map.pitch + k;
  }
  Vec operator()(int r, int j) const { return Float32::load(at[r] + j * kLanes); }
};

template <int V>
struct Channels {
  Vec value[V];
  explicit Channels(const float* of) {
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) value[j] = Float32::load(of + j * kLanes);
  }
};

template <int R, int V, class Change>
inline void each(Vec (&z)[R][V], Change change) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) z[r][j] = change(z[r][j], r, j);
  }
}

inline Vec keep_unless(IntVec zero, Vec z) { return (Vec)((IntVec)z & ~zero); }

inline Vec sigmoid(Vec z) {
  for (int i = 0; i < kLanes; ++i) z[i] = 1.0f / (1.0f + __builtin_expf(-z[i]));
  return z;
}

// So many lanes of z, and zeros behind them.
inline Vec first_lanes_of(Vec z, int64_t count) {
  for (int i = 0; i < kLanes; ++i) z[i] = i < count ? z[i] : 0.0f;
  return z;
}

// Which units are active: those in (0, upper). Infinity is, where nothing bounds it.
template <bool bounded>
inline LaneMask active(Vec z, float upper) {
  const LaneMask positive = greater(z, Vec{});
  if constexpr (bounded) return positive & greater(spread(upper), z);
  return positive;
}

// Adds to the sums of each row's image, row by row: their order is the same however rows are blocked.
template <int R, int V, class Add>
inline void add_up(const Vec (&z)[R][V], const Output* out, int64_t k, Add add) {
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) {
    if (out[0].sums == out[R - 1].sums) {
      Vec sum = Float32::load(out[0].sums + k + j * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum = add(sum, z[r][j]);
      Float32::store(out[0].sums + k + j * kLanes, sum);
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* const sums = out[r].sums + k + j * kLanes;
        Float32::store(sums, add(Float32::load(sums), z[r][j]));
      }
    }
  }
}

// The bits of the active units of R rows; a word is of one panel.
template <bool bounded, int R, int V>
inline void write_bits(const Convolution& job, const Vec (&z)[R][V], const Output* out, int64_t k) {
  constexpr int kVecs = gaia::cpu::kPackedNr / kLanes;
  const int64_t panel = k / gaia::cpu::kPackedNr, plane = gaia::cpu::mask_plane(job.n * job.y_h * job.y_w);
  const int shift = static_cast<int>(k % gaia::cpu::kPackedNr);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if constexpr (V % kVecs == 0) {
#pragma GCC unroll 4
      for (int p = 0; p < V / kVecs; ++p) {
        unsigned word = 0;
#pragma GCC unroll 4
        for (int j = 0; j < kVecs; ++j)
          word |= bits_of(active<bounded>(z[r][p * kVecs + j], job.upper)) << (j * kLanes);
        job.bits[(panel + p) * plane + out[r].position] = static_cast<uint16_t>(word);
      }
    } else {  // part of a panel: its first vector begins the word, the others add to it
      uint16_t& word = job.bits[panel * plane + out[r].position];
      unsigned bits = 0;
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) bits |= bits_of(active<bounded>(z[r][j], job.upper)) << (shift + j * kLanes);
      word = static_cast<uint16_t>(shift == 0 ? bits : word | bits);
    }
  }
}

// Fetches the lines of y that are written next.
template <int R, int V>
inline void fetch_outputs(const Convolution& job, const Output* out, int64_t k) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const float* const y = job.y.data + out[r].position * job.y.pitch + k;
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) __builtin_prefetch(y + j * kLanes, 1, 3);
  }
}

// Finishes the outputs z of R rows, channels from k on, and writes them to y.
template <int R, int V>
inline void finish(const Convolution& job, Vec (&z)[R][V], const Output* out, int64_t k) {
  const bool bounded = job.upper < __builtin_inff();
  if (job.bias != nullptr) {
    const Channels<V> bias(job.bias + k);
    each(z, [&](Vec x, int, int j) { return x + bias.value[j]; });
  }
  if (job.residual.data != nullptr) {
    const Rows<R, V> residual(job.residual, out, k);
    each(z, [&](Vec x, int r, int j) { return x + residual(r, j); });
  }
  if (job.activation == gaia::cpu::kRelu) {
    each(z, [](Vec x, int, int) { return larger(Vec{}, x); });
    if (bounded) {
      const Vec upper = spread(job.upper);
      each(z, [&](Vec x, int, int) { return smaller(upper, x); });
    }
  } else if (job.activation == gaia::cpu::kSigmoid) {
    each(z, [&](Vec x, int, int j) { return first_lanes_of(sigmoid(x), job.channels - k - j * kLanes); });
  }
  if (job.relu_mask.data != nullptr) {
    const Rows<R, V> mask(job.relu_mask, out, k);
    each(z, [&](Vec x, int r, int j) { return keep_unless(mask(r, j) <= 0.0f, x); });
    if (bounded) each(z, [&](Vec x, int r, int j) { return keep_unless(mask(r, j) >= job.upper, x); });
  }
  if (out[0].sums != nullptr) {
    switch (job.statistic) {
      case gaia::cpu::kSum: add_up(z, out, k, [](Vec sum, Vec x) { return sum + x; }); break;
      case gaia::cpu::kAbsSum:
        add_up(z, out, k, [](Vec sum, Vec x) { return sum + (Vec)((IntVec)x & 0x7fffffff); });
        break;
      case gaia::cpu::kPositive:
        if (bounded) {
          add_up(z, out, k, [&](Vec sum, Vec x) { return add_where(active<true>(x, job.upper), sum, spread(1.0f)); });
        } else {
          add_up(z, out, k, [](Vec sum, Vec x) { return add_where(active<false>(x, 0), sum, spread(1.0f)); });
        }
        break;
    }
  }
  if (job.bits != nullptr) bounded ? write_bits<true>(job, z, out, k) : write_bits<false>(job, z, out, k);
  if (job.scale != nullptr) {
    const Channels<V> scale(job.scale + k);
    each(z, [&](Vec x, int, int j) { return x * scale.value[j]; });
  }
  if (job.skip.data != nullptr) {
    const Rows<R, V> skip(job.skip, out, k);
    each(z, [&](Vec x, int r, int j) { return x + skip(r, j); });
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    float* const y = job.y.data + out[r].position * job.y.pitch + k;
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j) Float32::store(y + j * kLanes, z[r][j]);
  }
}

}  // namespace

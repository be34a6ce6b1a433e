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

// Adds what is summed to the sums of each row's image, row by row: their order is the same however rows are blocked.
template <int R, int V, class Summand>
inline void add_up(const Vec (&z)[R][V], const Output* out, int64_t k, Summand summand) {
#pragma GCC unroll 4
  for (int j = 0; j < V; ++j) {
    if (out[0].sums == out[R - 1].sums) {
      Vec sum = Float32::load(out[0].sums + k + j * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) sum += summand(z[r][j]);
      Float32::store(out[0].sums + k + j * kLanes, sum);
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        float* const sums = out[r].sums + k + j * kLanes;
        Float32::store(sums, Float32::load(sums) + summand(z[r][j]));
      }
    }
  }
}

// Finishes the outputs z of R rows, channels from k on, and writes them to y.
template <int R, int V>
inline void finish(const Convolution& job, Vec (&z)[R][V], const Output* out, int64_t k) {
  if (job.bias != nullptr) {
    const Channels<V> bias(job.bias + k);
    each(z, [&](Vec x, int, int j) { return x + bias.value[j]; });
  }
  if (job.residual.data != nullptr) {
    const Rows<R, V> residual(job.residual, out, k);
    each(z, [&](Vec x, int r, int j) { return x + residual(r, j); });
  }
  if (job.relu) each(z, [](Vec x, int, int) { return keep_unless(x <= 0.0f, x); });
  if (job.relu_mask.data != nullptr) {
    const Rows<R, V> mask(job.relu_mask, out, k);
    each(z, [&](Vec x, int r, int j) { return keep_unless(mask(r, j) <= 0.0f, x); });
  }
  if (out[0].sums != nullptr) {
    switch (job.statistic) {
      case gaia::cpu::kSum: add_up(z, out, k, [](Vec x) { return x; }); break;
      case gaia::cpu::kAbsSum: add_up(z, out, k, [](Vec x) { return (Vec)((IntVec)x & 0x7fffffff); }); break;
      case gaia::cpu::kPositive:
        add_up(z, out, k, [](Vec x) { return (Vec)((IntVec)(x > 0.0f) & (IntVec)spread(1.0f)); });
        break;
    }
  }
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

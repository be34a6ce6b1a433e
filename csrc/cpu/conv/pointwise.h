// No convolution: what stands behind one, of a map as it is. Only for level.cpp.
#pragma once

#include "cpu/conv/chunk.h"

namespace {

// Each position's channels times their factors.
class Pointwise {
 public:
  const Convolution& job;

  explicit Pointwise(const Convolution& job) : job(job) {}
  int64_t tiles() const { return job.out_h * job.out_w; }
  int64_t panels() const { return job.k / kNr; }
  double operations() const { return 2.0 * static_cast<double>(job.n * tiles() * job.k); }
  int64_t rows() const { return 1 + kPointwiseFloats / job.k; }
  int64_t least_rows() const { return rows(); }
  int64_t scratch(int64_t) const { return 0; }

  void run(const Chunk& chunk, float*) const {
    Output out[kRows];
    int rows;
    chunk.each_piece([&](int64_t image, int64_t from, int64_t to, float* sums) {
      const float* const factor = job.factor == nullptr ? nullptr : job.factor + image * job.factor_stride;
      int64_t tile = from;
      for (; tile < to; tile += rows) {
        rows = tile + kRows <= to ? kRows : 1;
        for (int r = 0; r < rows; ++r) out[r] = {image * tiles() + tile + r, sums};
        if (rows == kRows) {
          channels<kRows, 4>(chunk.begin * kNr, chunk.end * kNr, out, factor);
        } else {
          channels<1, 4>(chunk.begin * kNr, chunk.end * kNr, out, factor);
        }
      }
    });
  }

 private:
  static constexpr int kRows = 4;

  template <int R, int V>
  void channels(int64_t k, int64_t end, const Output* out, const float* factor) const {
    for (; k + V * kLanes <= end; k += V * kLanes) block<R, V>(k, out, factor);
    if constexpr (V > 1) channels<R, V / 2>(k, end, out, factor);
  }

  template <int R, int V>
  [[gnu::flatten]] void block(int64_t k, const Output* out, const float* factors) const {
    Vec z[R][V];
    if (job.x.data == nullptr) {
      const Channels<V> factor(factors + k);
      each(z, [&](Vec, int, int j) { return factor.value[j]; });
    } else {
      const Rows<R, V> x(job.x, out, k);
      each(z, [&](Vec, int r, int j) { return x(r, j); });
      if (factors != nullptr) {
        const Channels<V> factor(factors + k);
        each(z, [&](Vec value, int, int j) { return value * factor.value[j]; });
      }
    }
    finish(job, z, out, k);
  }
};

}  // namespace

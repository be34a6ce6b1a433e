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
    int rows = 0;
    chunk.each_row([&](int64_t image, int64_t tile, float* sums) {
      out[rows++] = {image * tiles() + tile, sums};
      if (rows < kRows) return;
      channels<kRows, 4>(chunk.begin * kNr, chunk.end * kNr, out);
      rows = 0;
    });
    for (int r = 0; r < rows; ++r) channels<1, 4>(chunk.begin * kNr, chunk.end * kNr, out + r);
  }

 private:
  static constexpr int kRows = 4;

  template <int R, int V>
  void channels(int64_t k, int64_t end, const Output* out) const {
    for (; k + V * kLanes <= end; k += V * kLanes) block<R, V>(k, out);
    if constexpr (V > 1) channels<R, V / 2>(k, end, out);
  }

  template <int R, int V>
  void block(int64_t k, const Output* out) const {
    const Rows<R, V> x(job.x, out, k);
    Vec z[R][V];
    each(z, [&](Vec, int r, int j) { return x(r, j); });
    if (job.factor != nullptr) {
      const Channels<V> factor(job.factor + k);
      each(z, [&](Vec value, int, int j) { return value * factor.value[j]; });
    }
    finish(job, z, out, k);
  }
};

}  // namespace

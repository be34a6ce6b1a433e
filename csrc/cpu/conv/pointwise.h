// No convolution: what stands behind one, of a map as it is. Only for level.cpp.
#pragma once

#include "cpu/conv/epilogue.h"
#include "cpu/tuning.h"

namespace {

// No convolution: each position's channels times their factors.
struct Pointwise {
  static constexpr int kPositions = 0;
  const Convolution& job;

  explicit Pointwise(const Convolution& job) : job(job) {}
  int64_t tiles() const { return job.out_h * job.out_w; }
  int64_t depth() const { return 0; }
  int64_t rows() const { return 1 + kPointwiseFloats / job.k; }
  void gather(int64_t, int64_t, float*, int64_t) const {}

  Vec finish(const Epilogue& epilogue, int64_t image, int64_t tile, const float*, int64_t, int64_t k) const {
    const int64_t position = image * tiles() + tile;
    Vec z = Float32::load(job.x + position * job.k + k);
    if (job.factor != nullptr) z = z * Float32::load(job.factor + k);
    return epilogue(z, position, k);
  }
};

}  // namespace

// What stands behind a convolution, applied while its outputs are in registers. Only for level.cpp.
#pragma once

#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace {

using gaia::cpu::Convolution;

// What stands behind the convolution: writes y, returns what is summed over space.
struct Epilogue {
  const Convolution& job;
  Vec operator()(Vec z, int64_t position, int64_t k) const {
    const int64_t at = position * job.k + k;
    if (job.bias != nullptr) z += Float32::load(job.bias + k);
    if (job.residual != nullptr) z += Float32::load(job.residual + at);
    if (job.relu) z = (Vec)((IntVec)z & ~(IntVec)(z <= 0.0f));
    if (job.relu_mask != nullptr) z = (Vec)((IntVec)z & ~(IntVec)(Float32::load(job.relu_mask + at) <= 0.0f));
    Vec y = z;
    if (job.scale != nullptr) y = y * Float32::load(job.scale + k);
    if (job.skip != nullptr) y = y + Float32::load(job.skip + at);
    Float32::store(job.y + at, y);
    switch (job.statistic) {
      case gaia::cpu::kAbsSum: return (Vec)((IntVec)z & 0x7fffffff);
      case gaia::cpu::kPositive: return (Vec)((IntVec)(z > 0.0f) & (IntVec)spread(1.0f));
      default: return z;
    }
  }
};

}  // namespace

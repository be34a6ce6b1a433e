// Whether at every position of a grid the channels pass a test.
#include "cpu/kernels.h"

namespace gaia::cpu {

namespace {

bool any_above(const float* y, int64_t channels, float bound) {
  constexpr int64_t kBlock = 16;
  int64_t k = 0;
  for (; k + kBlock <= channels; k += kBlock) {
    int above = 0;
    for (int64_t i = 0; i < kBlock; ++i) above |= y[k + i] > bound;
    if (above != 0) return true;  // mostly the first block tells
  }
  for (; k < channels; ++k) {
    if (y[k] > bound) return true;
  }
  return false;
}

bool all_above(const float* y, int64_t channels, float bound) {
  int above = 1;
  for (int64_t k = 0; k < channels; ++k) above &= y[k] > bound;
  return above != 0;
}

bool passes(const ActiveEverywhere& job, const float* y, int64_t channels) {
  switch (job.test) {
    case kSomeAbove: return any_above(y, channels, job.bound);
    case kAllAbove: return all_above(y, channels, job.bound);
    case kAllFinite: return all_finite(y, channels);
  }
  return false;
}

}  // namespace

void active_everywhere(const ActiveEverywhere& job) {
  if (job.test != kSomeAbove && job.begin == 0 && job.step == 1 && job.last - job.first == job.y.pitch) {
    // Positions without gaps are one row.
    for (int64_t image = 0; image < job.n; ++image) {
      const int64_t numbers = job.h * job.w * job.y.pitch;
      job.out[image * job.out_stride] = passes(job, job.y.data + image * numbers, numbers) ? 1.0f : 0.0f;
    }
    return;
  }
  for (int64_t image = 0; image < job.n; ++image) {
    bool active = true;
    for (int64_t i = job.begin; active && i < job.h; i += job.step) {
      for (int64_t j = job.begin; active && j < job.w; j += job.step) {
        const float* const y = job.y.data + ((image * job.h + i) * job.w + j) * job.y.pitch + job.first;
        active = passes(job, y, job.last - job.first);
      }
    }
    job.out[image * job.out_stride] = active ? 1.0f : 0.0f;
  }
}

}  // namespace gaia::cpu

// Whether at every position of a grid some channel, or every one, is above a bound.
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

}  // namespace

void active_everywhere(const ActiveEverywhere& job) {
  for (int64_t image = 0; image < job.n; ++image) {
    bool active = true;
    for (int64_t i = job.begin; active && i < job.h; i += job.step) {
      for (int64_t j = job.begin; active && j < job.w; j += job.step) {
        const float* const y = job.y.data + ((image * job.h + i) * job.w + j) * job.y.pitch + job.first;
        const int64_t channels = job.last - job.first;
        active = job.every ? all_above(y, channels, job.bound) : any_above(y, channels, job.bound);
      }
    }
    job.out[image * job.out_stride] = active ? 1.0f : 0.0f;
  }
}

}  // namespace gaia::cpu

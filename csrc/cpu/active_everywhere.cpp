// Whether every position of a grid on a ReLU's output has an active channel.
#include "cpu/kernels.h"

namespace gaia::cpu {

namespace {

bool any_active(const float* y, int64_t channels) {
  constexpr int64_t kBlock = 16;
  int64_t k = 0;
  for (; k + kBlock <= channels; k += kBlock) {
    int active = 0;
    for (int64_t i = 0; i < kBlock; ++i) active |= y[k + i] > 0.0f;
    if (active != 0) return true;  // mostly the first block tells
  }
  for (; k < channels; ++k) {
    if (y[k] > 0.0f) return true;
  }
  return false;
}

}  // namespace

void active_everywhere(const ActiveEverywhere& job) {
  for (int64_t image = 0; image < job.n; ++image) {
    bool active = true;
    for (int64_t i = job.begin; active && i < job.h; i += job.step) {
      for (int64_t j = job.begin; active && j < job.w; j += job.step)
        active =
            any_active(job.y.data + ((image * job.h + i) * job.w + j) * job.y.pitch + job.first, job.last - job.first);
    }
    job.out[image * job.out_stride] = active ? 1.0f : 0.0f;
  }
}

}  // namespace gaia::cpu

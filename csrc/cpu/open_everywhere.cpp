// Whether every position of a grid on a ReLU's output has an open channel.
#include "kernels.h"

namespace gaia::cpu {

namespace {

bool any_open(const float* y, int64_t channels) {
  constexpr int64_t kBlock = 16;
  int64_t k = 0;
  for (; k + kBlock <= channels; k += kBlock) {
    int open = 0;
    for (int64_t i = 0; i < kBlock; ++i) open |= y[k + i] > 0.0f;
    if (open != 0) return true;  // mostly the first block tells
  }
  for (; k < channels; ++k) {
    if (y[k] > 0.0f) return true;
  }
  return false;
}

}  // namespace

void open_everywhere(const OpenEverywhere& job) {
  for (int64_t image = 0; image < job.n; ++image) {
    bool open = true;
    for (int64_t i = job.begin; open && i < job.h; i += job.step) {
      for (int64_t j = job.begin; open && j < job.w; j += job.step)
        open = any_open(job.y + ((image * job.h + i) * job.w + j) * job.k + job.first, job.last - job.first);
    }
    job.out[image * job.out_step] = open ? 1.0f : 0.0f;
  }
}

}  // namespace gaia::cpu

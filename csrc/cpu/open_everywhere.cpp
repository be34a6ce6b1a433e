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

void open_everywhere(const float* y, int64_t n, int64_t h, int64_t w, int64_t k, int64_t begin, int64_t step,
                     float* out) {
  for (int64_t image = 0; image < n; ++image) {
    bool open = true;
    for (int64_t i = begin; open && i < h; i += step) {
      for (int64_t j = begin; open && j < w; j += step) open = any_open(y + ((image * h + i) * w + j) * k, k);
    }
    out[image] = open ? 1.0f : 0.0f;
  }
}

}  // namespace gaia::cpu

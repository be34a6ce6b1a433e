// Images as callers have them, channel by channel, to the order of maps. Only for level.cpp.
#pragma once

#include "cpu/kernels.h"

namespace {

class ChannelsLastCopy {
 public:
  explicit ChannelsLastCopy(const gaia::cpu::ChannelsLast& job) : job_(job) {}

  int64_t items() const { return job_.n * blocks(); }
  int64_t scratch() const { return 0; }
  double operations() const { return static_cast<double>(job_.n * job_.area * job_.c); }

  void run(int64_t item, float*) const {
    const int64_t image = item / blocks(), block = item % blocks(), begin = block * kBlock;
    const int64_t end = begin + kBlock < job_.area ? begin + kBlock : job_.area;
    const float* const x = job_.x + image * job_.c * job_.area;
    float* const y = job_.y.data + image * job_.area * job_.y.pitch;
    if (job_.c == 3 && job_.y.pitch == 3) return copy<3>(x, y, begin, end);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t c = 0; c < job_.c; ++c) y[i * job_.y.pitch + c] = x[c * job_.area + i];
      for (int64_t c = job_.c; c < job_.y.pitch; ++c) y[i * job_.y.pitch + c] = 0.0f;
    }
  }

 private:
  static constexpr int64_t kBlock = 4096;

  int64_t blocks() const { return (job_.area + kBlock - 1) / kBlock; }

  template <int C>
  void copy(const float* x, float* __restrict y, int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      for (int c = 0; c < C; ++c) y[i * C + c] = x[c * job_.area + i];
    }
  }

  const gaia::cpu::ChannelsLast& job_;
};

}  // namespace

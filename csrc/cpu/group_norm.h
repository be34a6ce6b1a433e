// Group norm, with the ReLU behind it and the count of its active units. Only for level.cpp.
#pragma once

#include "cpu/tuning.h"

namespace {

using gaia::cpu::GroupNorm;

// An item is some groups of an image that are whole panels together.
class GroupNormalisation {
 public:
  explicit GroupNormalisation(const GroupNorm& job) : job_(job), group_(job.k / job.groups), block_(group_) {
    while (block_ % kNr != 0) block_ += group_;
  }

  int64_t items() const { return job_.n * (job_.k / block_); }
  int64_t scratch() const { return 3 * block_; }
  double operations() const { return 8.0 * static_cast<double>(job_.n * job_.area * job_.k); }

  void run(int64_t item, float* scratch) const {
    const int64_t blocks = job_.k / block_, image = item / blocks, begin = item % blocks * block_;
    float* const mean = scratch;
    float* const factor = scratch + block_;
    float* const rest = factor + block_;
    each_vector([&](int64_t k) { Float32::store(mean + k, sum(image, begin + k, [](Vec x) { return x; })); });
    each_group([&](int64_t first) { spread_mean(mean + first); });
    // That mean is rounded, and 1 / sqrt(epsilon) times as much of it would show where a group is constant: what is
    // left of the mean comes beside the squares.
    each_vector([&](int64_t k) {
      const Vec centre = Float32::load(mean + k);
      Float32::store(rest + k, sum(image, begin + k, [&](Vec x) { return x - centre; }));
      Float32::store(factor + k, sum(image, begin + k, [&](Vec x) { return (x - centre) * (x - centre); }));
    });
    each_group([&](int64_t first) {
      spread_mean(rest + first), spread_mean(factor + first);
      const float variance = factor[first] - rest[first] * rest[first];
      const float inverse = 1.0f / __builtin_sqrtf((variance < 0 ? 0 : variance) + job_.epsilon);
      for (int64_t k = first; k < first + group_; ++k) {
        mean[k] += rest[k];
        factor[k] = inverse * job_.scale[begin + k];
      }
    });
    each_vector([&](int64_t k) { write(image, begin + k, Float32::load(mean + k), Float32::load(factor + k)); });
  }

 private:
  // One chain of thousands of additions would round far more.
  static constexpr int64_t kChain = 128;

  template <class Use>
  void each_vector(Use use) const {
    for (int64_t k = 0; k < block_; k += kLanes) use(k);
  }
  template <class Use>
  void each_group(Use use) const {
    for (int64_t first = 0; first < block_; first += group_) use(first);
  }

  const float* input(int64_t image, int64_t at, int64_t k) const {
    return job_.x.data + (image * job_.area + at) * job_.x.pitch + k;
  }

  template <class Summand>
  Vec sum(int64_t image, int64_t k, Summand summand) const {
    Vec total = {};
    for (int64_t at = 0; at < job_.area;) {
      const int64_t end = at + kChain < job_.area ? at + kChain : job_.area;
      Vec part = {};
      for (; at < end; ++at) part += summand(Float32::load(input(image, at, k)));
      total += part;
    }
    return total;
  }

  // From the sums of a group's channels the mean over them and the positions, in place of each.
  void spread_mean(float* values) const {
    double total = 0;
    for (int64_t k = 0; k < group_; ++k) total += values[k];
    const float mean = static_cast<float>(total / static_cast<double>(group_ * job_.area));
    for (int64_t k = 0; k < group_; ++k) values[k] = mean;
  }

  void write(int64_t image, int64_t k, Vec mean, Vec factor) const {
    const Vec shift = Float32::load(job_.shift + k);
    IntVec count = {};
    for (int64_t at = 0; at < job_.area; ++at) {
      Vec y = (Float32::load(input(image, at, k)) - mean) * factor + shift;
      if (job_.relu) y = (Vec)((IntVec)y & ~(IntVec)(y <= 0.0f));
      count -= (IntVec)(y > 0.0f);
      Float32::store(job_.y.data + (image * job_.area + at) * job_.y.pitch + k, y);
    }
    for (int i = 0; job_.sums != nullptr && i < kLanes; ++i)
      job_.sums[image * job_.sums_stride + k + i] = static_cast<float>(count[i]);
  }

  const GroupNorm& job_;
  int64_t group_, block_;
};

}  // namespace

// Gradients through a mean over space, and through a gate that is made of one. Only for level.cpp.
#pragma once

#include "cpu/tuning.h"

namespace {

using gaia::cpu::GateGradient;
using gaia::cpu::MeanGradient;

// An item is a vector of channels of an image.
class GateGradients {
 public:
  explicit GateGradients(const GateGradient& job) : job_(job) {}

  int64_t items() const { return job_.n * vectors(); }
  int64_t scratch() const { return 0; }
  double operations() const { return 2.0 * static_cast<double>(job_.n * job_.area * job_.k); }

  void run(int64_t item, float*) const {
    const int64_t image = item / vectors(), k = item % vectors() * kLanes;
    const float* const g = job_.g.data + image * job_.area * job_.g.pitch + k;
    const float* const y = job_.y.data + image * job_.area * job_.y.pitch + k;
    Vec total = {};
    // One chain of thousands of additions would round far more.
    for (int64_t begin = 0; begin < job_.area; begin += kPart) {
      const int64_t end = begin + kPart < job_.area ? begin + kPart : job_.area;
      Vec part = {};
      for (int64_t i = begin; i < end; ++i)
        part = fused(Float32::load(g + i * job_.g.pitch), Float32::load(y + i * job_.y.pitch), part);
      total += part;
    }
    const Vec gate = Float32::load(job_.gate.data + image * job_.gate.pitch + k);
    Float32::store(job_.out.data + image * job_.out.pitch + k, total * (gate * (1.0f - gate)));
  }

 private:
  static constexpr int64_t kPart = 64;

  int64_t vectors() const { return job_.k / kLanes; }

  const GateGradient& job_;
};

// An item is a vector of channels of an image.
class MeanGradients {
 public:
  explicit MeanGradients(const MeanGradient& job) : job_(job) {}

  int64_t items() const { return job_.n * vectors(); }
  int64_t scratch() const { return 0; }
  double operations() const { return 2.0 * static_cast<double>(job_.n * job_.area * job_.k); }

  void run(int64_t item, float*) const {
    const int64_t image = item / vectors(), k = item % vectors() * kLanes;
    const float* const x = job_.x.data + image * job_.area * job_.x.pitch + k;
    float* const y = job_.y.data + image * job_.area * job_.y.pitch + k;
    const Vec mean = Float32::load(job_.mean.data + image * job_.mean.pitch + k);
    const Vec share = mean / spread(static_cast<float>(job_.area));
    for (int64_t i = 0; i < job_.area; ++i)
      Float32::store(y + i * job_.y.pitch, Float32::load(x + i * job_.x.pitch) + share);
  }

 private:
  int64_t vectors() const { return job_.k / kLanes; }

  const MeanGradient& job_;
};

}  // namespace

// The output component of GAIA-A that the logits of a linear head have. For a few images; many are matrix products.
// Only for level.cpp.
#pragma once

#include "cpu/tuning.h"

namespace {

using gaia::cpu::OutputComponent;

inline float add_lanes(Vec x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

void output_component(const OutputComponent& job) {
  const FloatMode mode;
  for (int64_t image = 0; image < job.n; ++image) {
    const float* const logits = job.logits + image * job.classes;
    float largest = logits[0];
    for (int64_t c = 1; c < job.classes; ++c) largest = logits[c] > largest ? logits[c] : largest;
    double total = 0;
    for (int64_t c = 0; c < job.classes; ++c) total += job.slopes[c] = __builtin_expf(logits[c] - largest);
    const double each = static_cast<double>(job.classes) / total;
    for (int64_t c = 0; c < job.classes; ++c) job.slopes[c] = static_cast<float>(1.0 - each * job.slopes[c]);
    Vec magnitudes = {};
    for (int64_t k = 0; k < job.k; k += kLanes) {
      Vec g = {};
      for (int64_t c = 0; c < job.classes; ++c) g += job.slopes[c] * Float32::load(job.weight + c * job.k + k);
      magnitudes += g < 0 ? -g : g;
    }
    job.out[image] = __builtin_sqrtf(add_lanes(magnitudes) * job.factor / static_cast<float>(job.k));
  }
}

}  // namespace

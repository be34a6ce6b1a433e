// A linear head: the logits behind a mean over space, and the output component of GAIA-A that they have. For a few
// images; many are matrix products. Only for level.cpp.
#pragma once

#include "cpu/tuning.h"

namespace {

using gaia::cpu::LinearHead;
using gaia::cpu::OutputComponent;

inline float add_lanes(Vec x) {
  float total = 0;
  for (int i = 0; i < kLanes; ++i) total += x[i];
  return total;
}

void pooled_logits(const LinearHead& job) {
  const FloatMode mode;
  const float inverse = 1.0f / static_cast<float>(job.area);
  for (int64_t image = 0; image < job.n; ++image) {
    const float* const x = job.x + image * job.area * job.k;
    for (int64_t k = 0; k < job.k; k += kLanes) {
      Vec sum = {};
      for (int64_t at = 0; at < job.area; ++at) sum += Float32::load(x + at * job.k + k);
      Float32::store(job.pooled + k, sum * inverse);
    }
    for (int64_t c = 0; c < job.classes; c += kHeadClasses) {
      const int64_t end = job.classes - c < kHeadClasses ? job.classes - c : kHeadClasses;
      Vec sums[kHeadClasses] = {};
      for (int64_t k = 0; k < job.k; k += kLanes) {
        const Vec mean = Float32::load(job.pooled + k);
        for (int64_t j = 0; j < end; ++j) sums[j] += mean * Float32::load(job.weight + (c + j) * job.k + k);
      }
      for (int64_t j = 0; j < end; ++j) {
        job.logits[image * job.classes + c + j] = add_lanes(sums[j]) + (job.bias != nullptr ? job.bias[c + j] : 0.0f);
      }
    }
  }
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

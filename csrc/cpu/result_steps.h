// What ends a program, an image an item: sums put side by side, the output component, the score, and whether it means
// something. Only for level.cpp.
#pragma once

#include "cpu/kernels.h"

namespace {

using gaia::cpu::CopyColumns;
using gaia::cpu::LogitSlopes;
using gaia::cpu::MeanRoot;
using gaia::cpu::ResultCheck;
using gaia::cpu::Results;
using gaia::cpu::Score;

class ColumnsCopy {
 public:
  explicit ColumnsCopy(const CopyColumns& job) : job_(job) {}

  int64_t items() const { return job_.n; }
  int64_t scratch() const { return 0; }
  double operations() const { return static_cast<double>(job_.n * job_.width); }

  void run(int64_t image, float*) const {
    __builtin_memcpy(job_.to + image * job_.to_stride, job_.from + image * job_.from_stride,
                     static_cast<size_t>(job_.width) * sizeof(float));
  }

 private:
  const CopyColumns& job_;
};

class Slopes {
 public:
  explicit Slopes(const LogitSlopes& job) : job_(job) {}

  int64_t items() const { return job_.n; }
  int64_t scratch() const { return 0; }
  double operations() const { return 16.0 * static_cast<double>(job_.n * job_.classes); }

  void run(int64_t image, float*) const {
    const float* const logits = job_.logits + image * job_.logits_stride;
    float* const out = job_.out.data + image * job_.out.pitch;
    float largest = logits[0];
    for (int64_t c = 1; c < job_.classes; ++c) largest = logits[c] > largest ? logits[c] : largest;
    double total = 0;
    for (int64_t c = 0; c < job_.classes; ++c) total += out[c] = __builtin_expf(logits[c] - largest);
    const double each = static_cast<double>(job_.classes) / total;
    for (int64_t c = 0; c < job_.classes; ++c) out[c] = static_cast<float>(1.0 - each * out[c]);
    for (int64_t c = job_.classes; c < job_.out.pitch; ++c) out[c] = 0.0f;
  }

 private:
  const LogitSlopes& job_;
};

class RootOfMean {
 public:
  explicit RootOfMean(const MeanRoot& job) : job_(job) {}

  int64_t items() const { return job_.n; }
  int64_t scratch() const { return 0; }
  double operations() const { return static_cast<double>(job_.n * job_.k); }

  void run(int64_t image, float*) const {
    const float* const x = job_.x + image * job_.x_stride;
    double total = 0;
    for (int64_t k = 0; k < job_.k; ++k) total += x[k];
    total *= job_.factor / static_cast<double>(job_.k);
    job_.out[image * job_.out_stride] = static_cast<float>(__builtin_sqrt(total));
  }

 private:
  const MeanRoot& job_;
};

class Scoring {
 public:
  explicit Scoring(const Score& job) : job_(job) {}

  int64_t items() const { return job_.packed.n; }
  int64_t scratch() const { return 0; }
  double operations() const { return 0; }

  void run(int64_t image, float*) const {
    gaia_packed one = job_.packed;
    one.n = 1;
    one.moments += image * one.stride_n;
    one.score += image * job_.score_stride;
    if (one.output_component != nullptr) one.output_component += image * job_.component_stride;
    gaia::cpu::frobenius(one);
  }

 private:
  const Score& job_;
};

class ResultChecking {
 public:
  explicit ResultChecking(const ResultCheck& job) : job_(job) {}

  int64_t items() const { return job_.results.n; }
  int64_t scratch() const { return 0; }
  double operations() const { return 0; }

  void run(int64_t image, float*) const {
    Results one = job_.results;
    one.n = 1;
    one.logits += image * one.logits_stride;
    one.score += image * one.score_stride;
    if (one.preconditions != nullptr) one.preconditions += image * one.preconditions_stride;
    if (one.component != nullptr) one.component += image * one.component_stride;
    if (one.finite != nullptr) one.finite += image * one.finite_stride;
    job_.out[image * job_.out_stride] = gaia::cpu::results_hold(one) ? 1.0f : 0.0f;
  }

 private:
  const ResultCheck& job_;
};

}  // namespace

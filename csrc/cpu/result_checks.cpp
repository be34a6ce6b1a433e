// Whether results mean something: pixels, logits and scores that are finite, and something to divide by.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

namespace gaia::cpu {

bool all_finite(const float* x, int64_t count) {
  constexpr uint32_t kExponent = 0x7f800000;
  constexpr int64_t kPiece = 4096;  // looked at without a branch
  for (int64_t begin = 0; begin < count; begin += kPiece) {
    const int64_t end = begin + kPiece < count ? begin + kPiece : count;
    uint32_t bad = 0;
    for (int64_t i = begin; i < end; ++i) {
      uint32_t bits;
      std::memcpy(&bits, x + i, sizeof bits);
      bad |= static_cast<uint32_t>((bits & kExponent) == kExponent);
    }
    if (bad != 0) return false;
  }
  return true;
}

bool all_positive(const float* x, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (!(x[i] > 0.0f)) return false;
  }
  return true;
}

namespace {

// max over classes of |1 - C softmax(S)|, the gradient of the sum of log_softmax(S): of the largest or the least logit.
double steepest(const float* logits, int64_t classes) {
  double largest = logits[0], least = logits[0], total = 0.0;
  for (int64_t c = 1; c < classes; ++c) {
    largest = std::fmax(largest, logits[c]);
    least = std::fmin(least, logits[c]);
  }
  for (int64_t c = 0; c < classes; ++c) total += std::exp(logits[c] - largest);
  const double number = static_cast<double>(classes);
  return std::fmax(number / total - 1.0, 1.0 - number * std::exp(least - largest) / total);
}

bool image_holds(const Results& found, int64_t i) {
  const float* const logits = found.logits + i * found.logits_stride;
  if (!all_finite(logits, found.classes) || !all_finite(found.score + i * found.score_stride, 1)) return false;
  if (found.finite != nullptr && !all_positive(found.finite + i * found.finite_stride, 1)) return false;
  if (found.preconditions != nullptr &&
      !all_positive(found.preconditions + i * found.preconditions_stride, found.precondition_count))
    return false;
  if (found.component == nullptr) return true;
  return all_positive(found.component + i * found.component_stride, 1) &&
         steepest(logits, found.classes) > found.rounding;
}

}  // namespace

bool results_hold(const Results& found) {
  for (int64_t i = 0; i < found.n; ++i) {
    if (!image_holds(found, i)) return false;
  }
  return true;
}

}  // namespace gaia::cpu

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

namespace {

// max over classes of |1 - C softmax(S)|, the gradient of the sum of log_softmax(S).
double steepest(const float* logits, int64_t classes) {
  double largest = logits[0], total = 0.0, steep = 0.0;
  for (int64_t c = 1; c < classes; ++c) largest = std::fmax(largest, logits[c]);
  for (int64_t c = 0; c < classes; ++c) total += std::exp(logits[c] - largest);
  for (int64_t c = 0; c < classes; ++c) {
    const double share = std::exp(logits[c] - largest) / total;
    steep = std::fmax(steep, std::fabs(1.0 - static_cast<double>(classes) * share));
  }
  return steep;
}

}  // namespace

bool results_hold(const Results& found) {
  if (!all_finite(found.logits, found.n * found.classes) || !all_finite(found.score, found.n)) return false;
  for (int64_t i = 0; i < found.n * found.precondition_count; ++i) {
    if (!(found.preconditions[i] > 0.0f)) return false;
  }
  for (int64_t i = 0; found.component != nullptr && i < found.n; ++i) {
    if (!(found.component[i] > 0.0f) || steepest(found.logits + i * found.classes, found.classes) <= found.rounding)
      return false;
  }
  return true;
}

}  // namespace gaia::cpu

// The score: the p-norm of each image's packed abnormality matrix (Eq. 12; p = 2 is the Frobenius norm).
#include <cmath>

#include "cpu/kernels.h"

namespace gaia::cpu {
namespace {

// One layer's columns of one image: the sum of (|moment| * factor)^p. Four partial sums keep the adders busy.
template <class Power>
double layer_power_sum(const float* moments, int64_t columns, double factor, Power power) {
  double partial[4] = {0.0, 0.0, 0.0, 0.0};
  int64_t j = 0;
  for (; j + 4 <= columns; j += 4) {
    for (int i = 0; i < 4; ++i) partial[i] += power(std::fabs(static_cast<double>(moments[j + i]) * factor));
  }
  for (; j < columns; ++j) partial[0] += power(std::fabs(static_cast<double>(moments[j]) * factor));
  return (partial[0] + partial[1]) + (partial[2] + partial[3]);
}

// The same, with the largest entry in the sum's place (p = infinity). A NaN must not lose against it.
double layer_maximum(const float* moments, int64_t columns, double factor) {
  double largest = 0.0;
  for (int64_t j = 0; j < columns; ++j) {
    const double e = std::fabs(static_cast<double>(moments[j]) * factor);
    if (!(e <= largest)) largest = e;
    if (std::isnan(largest)) break;
  }
  return largest;
}

}  // namespace

void frobenius(const gaia_packed& packed) {
  for (int64_t i = 0; i < packed.n; ++i) {
    const float* row = packed.moments + i * packed.stride_n;
    const double output = packed.output_component != nullptr ? packed.output_component[i] : 1.0;
    double total = 0.0;
    for (int64_t l = 0; l < packed.layers; ++l) {
      const int64_t begin = packed.begins[l];
      const int64_t columns = packed.widths[l];
      const double factor = packed.inverse_area[l] / output;
      if (packed.p == 2.0) {
        total += layer_power_sum(row + begin, columns, factor, [](double e) { return e * e; });
      } else if (packed.p == 1.0) {
        total += layer_power_sum(row + begin, columns, factor, [](double e) { return e; });
      } else if (std::isinf(packed.p)) {
        const double largest = layer_maximum(row + begin, columns, factor);
        if (!(largest <= total)) total = largest;
        if (std::isnan(total)) break;
      } else {
        const double p = packed.p;
        total += layer_power_sum(row + begin, columns, factor, [p](double e) { return std::pow(e, p); });
      }
    }
    if (packed.p == 2.0) {
      total = std::sqrt(total);
    } else if (packed.p != 1.0 && !std::isinf(packed.p)) {
      total = std::pow(total, 1.0 / packed.p);
    }
    packed.score[i] = static_cast<float>(total);
  }
}

}  // namespace gaia::cpu

// The p-norm of Eq. 12 as the kernels accumulate it: in double, term by term.
#pragma once

#include <cmath>

#include "launch.h"

namespace gaia::cuda {

enum class Norm { kOne, kTwo, kInfinity, kOther };

inline Norm norm_of(double p) {
  if (p == 2.0) return Norm::kTwo;
  if (p == 1.0) return Norm::kOne;
  return std::isinf(p) ? Norm::kInfinity : Norm::kOther;
}

template <Norm N>
__device__ double power(double eps, double p) {
  if (N == Norm::kTwo) return eps * eps;
  if (N == Norm::kOther) return pow(eps, p);
  return eps;
}

// The larger one; a NaN wins.
__device__ inline double larger(double a, double b) { return !(a <= b) && !(b != b) ? a : b; }

template <Norm N>
__device__ double merged(double a, double b) {
  return N == Norm::kInfinity ? larger(a, b) : a + b;
}

template <Norm N>
__device__ double root(double total, double p) {
  if (N == Norm::kTwo) return sqrt(total);
  if (N == Norm::kOther) return pow(total, 1.0 / p);
  return total;
}

}  // namespace gaia::cuda

// The CPU implementations behind one table per instruction-set level.
#pragma once

#include "gaia_kernels.h"

namespace gaia::cpu {

struct KernelTable {
  const char* level;
  // Reads g once and writes its moments.
  void (*channel_moments)(const gaia_map& g, const gaia_moments& out, int threads);
  // Writes grad_in = where(y <= 0, 0, g) * scale and the moments of where(y <= 0, 0, g). Without a y nothing is
  // masked; scale has K values or is null. The maps share shape and dtype, not strides.
  void (*relu_backward_moments)(const gaia_map& g, const gaia_map* y, const float* scale, const gaia_map& grad_in,
                                const gaia_moments& out, int threads);
  // Writes y = relu(x * scale + shift + residual) and counts its non-zeros; scale and shift have K values or are null.
  void (*relu_forward_count)(const gaia_map& x, const gaia_map* residual, const float* scale, const float* shift,
                             const gaia_map& y, const gaia_moments& out, int threads);
};

// Defined once per level, by compiling level.cpp with that level's flags.
const KernelTable& baseline_table();
#ifdef GAIA_X86_LEVELS
const KernelTable& v3_table();
const KernelTable& v4_table();
#endif

// The levels that this processor runs, best first; the array ends with null.
const KernelTable* const* supported_tables();

void frobenius(const gaia_packed& packed);

}  // namespace gaia::cpu

// Which instruction-set levels were built, and which of them this processor runs.
#include "cpu/kernels.h"

namespace gaia::cpu {

const KernelTable* const* supported_tables() {
  static const KernelTable* tables[4] = {nullptr, nullptr, nullptr, nullptr};
  if (tables[0] == nullptr) {
    int count = 0;
#ifdef GAIA_X86_LEVELS
    __builtin_cpu_init();
    const bool v3 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2") &&
                    __builtin_cpu_supports("f16c");
    const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    if (v4) tables[count++] = &v4_table();
    if (v3) tables[count++] = &v3_table();
#endif
    tables[count] = &baseline_table();
  }
  return tables;
}

const char* const* built_levels() {
  static const char* const levels[] = {
#ifdef GAIA_X86_LEVELS
      "v4", "v3",
#endif
      "baseline", nullptr};
  return levels;
}

}  // namespace gaia::cpu

// The kernels for one instruction-set level: compiled once per level, with that level's flags and GAIA_LEVEL naming it.
#include "cpu/channel_moments.h"
#include "cpu/executor.h"
#include "cpu/kernels.h"
#include "cpu/relu_backward_moments.h"
#include "cpu/relu_forward_count.h"

#define GAIA_STRING_(x) #x
#define GAIA_STRING(x) GAIA_STRING_(x)
#define GAIA_JOIN_(a, b) a##b
#define GAIA_JOIN(a, b) GAIA_JOIN_(a, b)

namespace gaia::cpu {

const KernelTable& GAIA_JOIN(GAIA_LEVEL, _table)() {
  static const KernelTable table = {GAIA_STRING(GAIA_LEVEL), channel_moments, relu_backward_moments, execute,
                                    relu_forward_count};
  return table;
}

}  // namespace gaia::cpu

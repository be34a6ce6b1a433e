#include "cpu/caches.h"

#include <unistd.h>

namespace gaia::cpu {

namespace {

int64_t read_l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  const long found = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (found > 0) return found;
#endif
  return 1 << 20;
}

}  // namespace

int64_t l2_bytes() {
  static const int64_t bytes = read_l2_bytes();
  return bytes;
}

}  // namespace gaia::cpu

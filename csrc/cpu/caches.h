// The sizes of this processor's caches.
#pragma once

#include <stdint.h>

namespace gaia::cpu {

// The second-level cache of one core; 1 MiB where the system does not tell. Read once.
int64_t l2_bytes();

}  // namespace gaia::cpu

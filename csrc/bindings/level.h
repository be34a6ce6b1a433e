// The instruction-set level whose kernels are called.
#pragma once

#include <string>

#include "cpu/kernels.h"

namespace gaia {

const cpu::KernelTable& active_level();

// std::invalid_argument where this processor does not run it.
void set_active_level(const std::string& name);

}  // namespace gaia

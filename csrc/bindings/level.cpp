#include "bindings/level.h"

#include <cstdlib>
#include <stdexcept>

namespace gaia {

namespace {

const cpu::KernelTable* find_level(const std::string& level) {
  std::string supported;
  for (auto table = cpu::supported_tables(); *table != nullptr; ++table) {
    if (level == (*table)->level) return *table;
    supported += std::string(supported.empty() ? "" : ", ") + (*table)->level;
  }
  throw std::invalid_argument("instruction-set level '" + level + "' does not run here; choose from: " + supported);
}

const cpu::KernelTable*& current() {
  static const cpu::KernelTable* level = [] {
    const char* forced = std::getenv("GAIA_FAST_CPU_LEVEL");
    return forced != nullptr && *forced != '\0' ? find_level(forced) : cpu::supported_tables()[0];
  }();
  return level;
}

}  // namespace

const cpu::KernelTable& active_level() { return *current(); }

void set_active_level(const std::string& name) { current() = find_level(name); }

}  // namespace gaia

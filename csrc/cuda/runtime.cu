#include "launch.h"

namespace gaia::cuda {

#ifdef GAIA_CUDA_EMULATED

std::string obstacle() { return {}; }
const char* build() { return "emulated"; }

#else

std::string obstacle() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess) return std::string("the CUDA runtime finds no device: ") + cudaGetErrorString(error);
  return devices > 0 ? std::string() : std::string("the CUDA runtime finds no device");
}
const char* build() { return GAIA_CUDA_TARGETS; }

#endif

}  // namespace gaia::cuda

#include "launch.h"

namespace gaia::cuda {

#ifdef GAIA_CUDA_EMULATED

std::string obstacle(int) { return {}; }
const char* build() { return "emulated"; }

#else

namespace {
// Loads wherever any kernel of this file's targets does.
__global__ void nothing() {}
}  // namespace

std::string obstacle(int device) {
  int devices = 0;
  const cudaError_t found = cudaGetDeviceCount(&devices);
  cudaGetLastError();  // the next caller must not find it
  if (found != cudaSuccess) return std::string("the CUDA runtime finds no device: ") + cudaGetErrorString(found);
  if (devices == 0) return "the CUDA runtime finds no device";
#if CUDART_VERSION >= 12010
  int driver = 0;
  if (cudaDriverGetVersion(&driver) == cudaSuccess && driver < 12010) {
    return "the kernels take more arguments than drivers before 530 allow: install a later one";
  }
#endif
  if (device >= devices) return "the CUDA runtime finds " + std::to_string(devices) + " devices";
  const OnDevice on_device(device);
  cudaFuncAttributes attributes;
  const cudaError_t error =
      on_device.error() != cudaSuccess ? on_device.error() : cudaFuncGetAttributes(&attributes, nothing);
  cudaGetLastError();
  if (error == cudaSuccess) return {};
  return std::string("the kernels were built for ") + GAIA_CUDA_TARGETS + ", and cannot be loaded on device " +
         std::to_string(device) + " (" + cudaGetErrorString(error) +
         "): reinstall with GAIA_FAST_CUDA_ARCHITECTURES set to its architecture";
}
const char* build() { return GAIA_CUDA_TARGETS; }

#endif

}  // namespace gaia::cuda

// Starting a kernel on a device and a stream, with CUDA or, for the tests, with the emulation. Only for .cu files.
#pragma once

#include <string>

#include "kernels.h"

#ifdef GAIA_CUDA_EMULATED
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace gaia::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Grid {
  int64_t blocks;
  int threads;
};

#ifndef GAIA_CUDA_EMULATED

// Writes 16 bytes at once. An assignment may be split by the compiler, which then writes them in four pieces.
__device__ inline void store_quad(void* to, const unsigned (&quad)[4]) {
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(quad[0]),
               "r"(quad[1]), "r"(quad[2]), "r"(quad[3])
               : "memory");
}

// The tensor's device is the current one while this lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    error_ = cudaGetDevice(&before_);
    if (error_ == cudaSuccess && before_ != device) {
      error_ = cudaSetDevice(device);
      changed_ = error_ == cudaSuccess;
    }
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  cudaError_t error() const { return error_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  cudaError_t error_;
};

inline std::string describe(cudaError_t error, const char* name) {
  if (error == cudaSuccess) return {};
  return std::string(name) + ": " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + ")";
}

template <class... Args>
std::string launch(const char* name, void (*kernel)(Args...), Grid grid, int device, Stream stream, Args... args) {
  const OnDevice on_device(device);
  if (on_device.error() != cudaSuccess) return describe(on_device.error(), name);
  if (grid.blocks > 0x7fffffff) return std::string(name) + ": the map needs more than 2**31 - 1 blocks";
  void* pointers[] = {static_cast<void*>(&args)...};
  const cudaError_t error =
      cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(static_cast<unsigned>(grid.blocks)),
                       dim3(static_cast<unsigned>(grid.threads)), pointers, 0, static_cast<cudaStream_t>(stream));
  cudaGetLastError();  // reported below; the next caller must not find it
  return describe(error, name);
}

#endif

}  // namespace gaia::cuda

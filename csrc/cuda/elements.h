// The element types, and how each is widened to float32 and narrowed again (round to nearest, ties to even).
#pragma once

#include "launch.h"

namespace gaia::cuda {

struct Float32 {
  using Storage = float;
  static __device__ float widen(float x) { return x; }
  static __device__ float narrow(float x) { return x; }
};

struct BFloat16 {
  using Storage = uint16_t;
  static __device__ float widen(uint16_t x) { return __uint_as_float(static_cast<unsigned>(x) << 16); }
#ifdef GAIA_CUDA_EMULATED
  static uint16_t narrow(float x) {
    const unsigned bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
#else
  static __device__ uint16_t narrow(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }
#endif
};

struct Float16 {
  using Storage = uint16_t;
#ifdef GAIA_CUDA_EMULATED
  static float widen(uint16_t x) {
    _Float16 half;
    std::memcpy(&half, &x, 2);
    return static_cast<float>(half);
  }
  static uint16_t narrow(float x) {
    const _Float16 half = static_cast<_Float16>(x);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    return bits;
  }
#else
  static __device__ float widen(uint16_t x) { return __half2float(__ushort_as_half(x)); }
  static __device__ uint16_t narrow(float x) { return __half_as_ushort(__float2half_rn(x)); }
#endif
};

// V elements that are loaded and stored at once.
template <class T, int V>
struct alignas(V * sizeof(typename T::Storage)) Pack {
  typename T::Storage element[V];
};

}  // namespace gaia::cuda

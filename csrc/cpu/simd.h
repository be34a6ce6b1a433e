// One vector of the level's native width over GCC's vector extensions, and the loads, stores and reductions on it.
// Only for level.cpp: it is compiled once per instruction-set level, so nothing here may have a name that another
// level shares (everything sits in an anonymous namespace), nor use standard templates, which the linker would merge.
#pragma once

#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "maps.h"

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t BitsVec __attribute__((vector_size(kLanes * 4)));
typedef uint16_t HalfVec __attribute__((vector_size(kLanes * 2)));

// a * b + c, rounded once where the processor can.
inline Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

inline Vec spread(float x) { return x - Vec{}; }

// The larger and the smaller of each two; b where either is NaN, or both are zero.
inline Vec larger(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return a > b ? a : b;
#endif
}

inline Vec smaller(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec)_mm_min_ps((__m128)a, (__m128)b);
#else
  return a < b ? a : b;
#endif
}

// IEEE arithmetic while one of these lives: rounding to nearest, subnormals kept. The caller may flush subnormals, and
// OpenMP's workers would not know of it, so that the result would depend on the number of threads.
class FloatMode {
 public:
  FloatMode() : saved_(read()) { write(kIeee); }
  ~FloatMode() { write(saved_); }
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;

 private:
#if defined(__SSE2__)
  static constexpr unsigned kIeee = 0x1f80;  // no exception is raised
  static unsigned read() { return _mm_getcsr(); }
  static void write(unsigned mode) { _mm_setcsr(mode); }
  unsigned saved_;
#elif defined(__aarch64__)
  static constexpr uint64_t kIeee = 0;
  static uint64_t read() {
    uint64_t mode;
    asm volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
  }
  static void write(uint64_t mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
  uint64_t saved_;
#else
  static constexpr int kIeee = 0;
  static int read() { return 0; }
  static void write(int) {}
  int saved_;
#endif
};

inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

template <class T>
inline T load_unaligned(const void* p) {
  T value;
  __builtin_memcpy(&value, p, sizeof(T));
  return value;
}

// How one element type is widened to float32 and narrowed again (round to nearest, ties to even).
struct Float32 {
  typedef float Storage;
  static float widen(float x) { return x; }
  static float narrow(float x) { return x; }
  static Vec load(const float* p) { return load_unaligned<Vec>(p); }
  static void store(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof(Vec)); }
};

struct BFloat16 {
  typedef uint16_t Storage;
  static float widen(uint16_t x) { return bits_to_float(static_cast<uint32_t>(x) << 16); }
  static uint16_t narrow(float x) {
    const uint32_t bits = float_to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
  static Vec load(const uint16_t* p) {
    const IntVec wide = __builtin_convertvector(load_unaligned<HalfVec>(p), IntVec);
    return (Vec)(wide << 16);
  }
  static void store(uint16_t* p, Vec x) {
    const BitsVec bits = (BitsVec)x;
    const BitsVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const BitsVec quiet = (bits >> 16) | 0x40u;
    const BitsVec is_nan = (BitsVec)((bits & 0x7fffffffu) > 0x7f800000u);
    const HalfVec half = __builtin_convertvector((is_nan & quiet) | (~is_nan & rounded), HalfVec);
    __builtin_memcpy(p, &half, sizeof(HalfVec));
  }
};

struct Float16 {
  typedef uint16_t Storage;
#if defined(__F16C__)
  static float widen(uint16_t x) { return _cvtsh_ss(x); }
  static uint16_t narrow(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
#else
  static float widen(uint16_t x) {
    const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
    const uint32_t exponent = (x >> 10) & 0x1fu;
    const uint32_t mantissa = x & 0x3ffu;
    if (exponent == 0) {  // 2^-24 times the mantissa: exact in float32
      const float magnitude = static_cast<float>(mantissa) * bits_to_float(0x33800000u);
      return bits_to_float(sign | float_to_bits(magnitude));
    }
    if (exponent == 31) return bits_to_float(sign | 0x7f800000u | (mantissa << 13) | (mantissa ? 0x400000u : 0u));
    return bits_to_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
  }
  static uint16_t narrow(float x) {
    const uint32_t bits = float_to_bits(x);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and up round to infinity
    if (magnitude < 0x38800000u) {  // below 2^-14 the half is subnormal: let one addition do the rounding
      const float shifted = bits_to_float(magnitude) + 0.5f;
      return static_cast<uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000u));
    }
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
#endif
#if defined(__AVX512F__)
  static Vec load(const uint16_t* p) { return (Vec)_mm512_cvtph_ps(load_unaligned<__m256i>(p)); }
  static void store(uint16_t* p, Vec x) {
    const __m256i half = _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __builtin_memcpy(p, &half, sizeof(half));
  }
#elif defined(__F16C__)
  static Vec load(const uint16_t* p) { return (Vec)_mm256_cvtph_ps(load_unaligned<__m128i>(p)); }
  static void store(uint16_t* p, Vec x) {
    const __m128i half = _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
    __builtin_memcpy(p, &half, sizeof(half));
  }
#else
  static Vec load(const uint16_t* p) {
    Vec x;
    for (int i = 0; i < kLanes; ++i) x[i] = widen(p[i]);
    return x;
  }
  static void store(uint16_t* p, Vec x) {
    for (int i = 0; i < kLanes; ++i) p[i] = narrow(x[i]);
  }
#endif
};

// The first `count` (fewer than kLanes) elements at p; the other lanes are zero.
template <class T>
inline Vec load_part(const typename T::Storage* p, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (sizeof(typename T::Storage) == 4) {
    return (Vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), p);
  }
#endif
  typename T::Storage buffer[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return T::load(buffer);
}

template <class T>
inline void store_part(typename T::Storage* p, Vec x, int64_t count) {
  typename T::Storage buffer[kLanes];
  T::store(buffer, x);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// Adds one to each lane of `count` whose `magnitude` is not zero.
inline void count_nonzero(IntVec& count, IntVec magnitude) {
#if defined(__AVX512F__)
  const __mmask16 nonzero = _mm512_test_epi32_mask((__m512i)magnitude, (__m512i)magnitude);
  count = (IntVec)_mm512_mask_add_epi32((__m512i)count, nonzero, (__m512i)count, _mm512_set1_epi32(1));
#else
  count -= (magnitude != 0);
#endif
}

// Some of the lanes, as comparisons give them.
#if defined(__AVX512F__)
struct LaneMask {
  __mmask16 set;
  LaneMask operator&(LaneMask other) const { return {static_cast<__mmask16>(set & other.set)}; }
};
inline LaneMask greater(Vec a, Vec b) { return {_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ)}; }
inline LaneMask equal(IntVec a, int32_t b) { return {_mm512_cmpeq_epi32_mask((__m512i)a, _mm512_set1_epi32(b))}; }
inline unsigned bits_of(LaneMask mask) { return mask.set; }
inline Vec add_where(LaneMask mask, Vec a, Vec b) {
  return (Vec)_mm512_mask_add_ps((__m512)a, mask.set, (__m512)a, (__m512)b);
}
#else
struct LaneMask {
  IntVec set;
  LaneMask operator&(LaneMask other) const { return {set & other.set}; }
};
inline LaneMask greater(Vec a, Vec b) { return {a > b}; }
inline LaneMask equal(IntVec a, int32_t b) { return {a == b}; }
inline unsigned bits_of(LaneMask mask) {
#if defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask.set));
#elif defined(__SSE2__)
  return static_cast<unsigned>(_mm_movemask_ps((__m128)mask.set));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= static_cast<unsigned>(mask.set[i] & 1) << i;
  return bits;
#endif
}
// a + b where a lane is set, a where none is.
inline Vec add_where(LaneMask mask, Vec a, Vec b) { return a + (Vec)((IntVec)b & mask.set); }
#endif

// Lane i of the result is lane `from[i]` of x.
inline Vec permute(Vec x, IntVec from) {
#if defined(__AVX512F__)
  return (Vec)_mm512_permutexvar_ps((__m512i)from, (__m512)x);
#elif defined(__AVX2__)
  return (Vec)_mm256_permutevar8x32_ps((__m256)x, (__m256i)from);
#else
  return __builtin_shuffle(x, from);
#endif
}

// Lanes of all ones where a bit is set.
inline IntVec lanes_of(unsigned bits) {
#if defined(__AVX512F__)
  return (IntVec)_mm512_movm_epi32(static_cast<__mmask16>(bits));
#else
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = 1 << i;
  return ((static_cast<int32_t>(bits) - IntVec{}) & lane) != 0;
#endif
}

// Adds neighbours: lane i of the result is a sum over two lanes of a (lower half) or of b (upper half).
template <class V>
inline V add_neighbours(V a, V b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14) +
         __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15);
#else
  return __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7);
#endif
}

// The horizontal sums of kLanes vectors, as one vector. Overwrites them.
template <class V>
inline V transpose_sum(V* rows) {
  for (int width = kLanes; width > 1; width /= 2) {
    for (int i = 0; i < width / 2; ++i) rows[i] = add_neighbours(rows[2 * i], rows[2 * i + 1]);
  }
  return rows[0];
}

}  // namespace

/* Maps and their moments, as the CPU kernels (cpu/kernels.h) and the CUDA kernels (cuda/kernels.h) take them: plain
 * structs, int64 strides counted in elements, no torch types.
 *
 * Semantics that hold for every implementation:
 *   - non-zero means g != 0 by its bits: -0.0 is zero, subnormals, infinities and NaN are not, also under
 *     flush-to-zero;
 *   - the ReLU mask selects, it does not multiply: where y <= 0 the gradient is 0, whatever g holds; a NaN in y
 *     passes g on (as torch's threshold_backward does);
 *   - sums accumulate in float32 (or wider), in an order that depends on shape and strides alone: the result of an
 *     image depends neither on the other images nor on the number of threads.
 */
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { GAIA_FLOAT32 = 0, GAIA_FLOAT16 = 1, GAIA_BFLOAT16 = 2 } gaia_dtype;

/* A map of N images, K channels, H x W positions. */
typedef struct {
  void* data;
  gaia_dtype dtype;
  int64_t n, k, h, w;
  int64_t stride_n, stride_k, stride_h, stride_w;
} gaia_map;

/* Three (N, K) float32 results; element (i, j) of each lies at i * stride_n + j. A null pointer is not computed. */
typedef struct {
  float* sum;
  float* abs_sum;
  float* nonzero;
  int64_t stride_n;
} gaia_moments;

/* N rows of float32: layer l holds widths[l] columns from begins[l] on. Packed, the layers follow each other; in the
 * zero-padded matrix of the paper, they begin at equal distances. */
typedef struct {
  const float* moments;
  int64_t n;
  int64_t stride_n;
  const int64_t* begins;
  const int64_t* widths;
  const double* inverse_area;
  int64_t layers;
  const float* output_component; /* N of them, or null for 1 */
  double p;
  float* score; /* N of them */
} gaia_packed;

#ifdef __cplusplus
}
#endif

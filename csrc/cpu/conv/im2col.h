// Any convolution: V holds the windows themselves, a row an output position. Only for level.cpp.
#pragma once

#include "cpu/conv/epilogue.h"
#include "cpu/conv/gemm.h"

namespace {

struct Im2col {
  static constexpr int kPositions = 1;
  const Convolution& job;

  explicit Im2col(const Convolution& job) : job(job) {}
  int64_t tiles() const { return job.out_h * job.out_w; }
  int64_t depth() const { return job.kernel_h * job.kernel_w * job.c; }
  int64_t rows() const { return rows_in_cache(depth() + job.k); }

  void gather(int64_t image, int64_t tile, float* v, int64_t) const {
    const int64_t top = tile / job.out_w * job.stride_h - job.pad_h;
    const int64_t left = tile % job.out_w * job.stride_w - job.pad_w;
    const float* const x = job.x + image * job.h * job.w * job.c;
    for (int64_t i = 0; i < job.kernel_h; ++i) {
      const int64_t row = top + i * job.dilation_h;
      for (int64_t j = 0; j < job.kernel_w; ++j, v += job.c) {
        const int64_t column = left + j * job.dilation_w;
        const bool inside = row >= 0 && row < job.h && column >= 0 && column < job.w;
        if (inside) {
          __builtin_memcpy(v, x + (row * job.w + column) * job.c, static_cast<size_t>(job.c) * sizeof(float));
        } else {
          __builtin_memset(v, 0, static_cast<size_t>(job.c) * sizeof(float));
        }
      }
    }
  }

  Vec finish(const Epilogue& epilogue, int64_t image, int64_t tile, const float* m, int64_t, int64_t k) const {
    const int64_t i = job.begin_h + tile / job.out_w * job.step_h, j = job.begin_w + tile % job.out_w * job.step_w;
    return epilogue(Float32::load(m + k), (image * job.y_h + i) * job.y_w + j, k);
  }
};

}  // namespace

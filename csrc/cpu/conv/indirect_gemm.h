// Any convolution of one group, as a product with its windows, which are read where they lie. Only for level.cpp.
//
// A window is cut into segments that lie in one piece: a tap's channels; where these are few, a row of taps. What
// reaches beyond the map is read from a row of zeros, or, a row of taps that reaches beyond it in part, from a copy.
#pragma once

#include "cpu/conv/chunk.h"
#include "cpu/conv/gemm.h"

namespace {

class IndirectGemm {
 public:
  const Convolution& job;

  explicit IndirectGemm(const Convolution& job)
      : job(job),
        taps_(job.c < kNr && job.x.pitch == job.c && job.dilation_w == 1 ? job.kernel_w : 1),
        across_(taps_ > 0 ? job.kernel_w / taps_ : 0),
        segments_(job.kernel_h * across_),
        length_(taps_ * job.c) {}

  int64_t tiles() const { return job.out_h * job.out_w; }
  int64_t panels() const { return job.k / kNr; }
  double operations() const {
    return 2.0 * static_cast<double>((depth() + 1) * job.n * tiles()) * static_cast<double>(job.k);
  }
  int64_t rows() const { return rows_in_cache(depth() + kGroup * kNr); }
  int64_t least_rows() const { return kLeastRows; }
  int64_t scratch(int64_t rows) const {
    const int64_t pointers = 2 * segments_ * rows, outputs = 4 * rows;
    return pointers + outputs + length_ + (taps_ > 1 ? rows * depth() : 0) + rows * kGroup * kNr + 4 * kAliasGap;
  }

  void run(const Chunk& chunk, float* scratch) const {
    const int64_t rows = chunk.rows();
    Output* const outputs = reinterpret_cast<Output*>(scratch);
    const float** const pointers = reinterpret_cast<const float**>(outputs + rows);
    float* const zeros = align(reinterpret_cast<float*>(pointers + segments_ * rows));
    float* const products = align(zeros + length_);
    float* const copies = align(products + rows * kGroup * kNr);
    for (int64_t i = 0; i < length_; ++i) zeros[i] = 0.0f;
    int64_t r = 0;
    chunk.each_piece([&](int64_t image, int64_t from, int64_t to, float* sums) {
      for (int64_t tile = from, count; tile < to; tile += count, r += count) {
        const int64_t i = tile / job.out_w, j = tile % job.out_w;
        count = job.out_w - j < to - tile ? job.out_w - j : to - tile;
        const int64_t at = (image * job.y_h + job.begin_h + i * job.step_h) * job.y_w + job.begin_w + j * job.step_w;
        for (int64_t n = 0; n < count; ++n) outputs[r + n] = {at + n * job.step_w, sums};
        windows(image, i, j, count, pointers + r, rows, zeros, copies + r * depth());
      }
    });
    const Matrix a = {pointers, rows, length_, 0};
    const Product product = {products, &job, outputs};
    chunk.each_group(panels(), [&](int64_t panels, int64_t begin, int64_t end, int64_t first) {
      multiply_group(rows, a, depth(), job.packed + first * kNr * depth(), panels, begin, end, product, first * kNr);
    });
  }

 private:
  static float* align(float* p) { return p + (-(reinterpret_cast<uintptr_t>(p) / sizeof(float)) & (kAliasGap - 1)); }

  int64_t depth() const { return segments_ * length_; }

  // The segments of `count` outputs from (i, j) on: those of the n-th to pointers[n], pointers[n + step], ...
  void windows(int64_t image, int64_t i, int64_t j, int64_t count, const float** pointers, int64_t step,
               const float* zeros, float* copies) const {
    const int64_t top = i * job.stride_h - job.pad_h, left = j * job.stride_w - job.pad_w;
    for (int64_t tap = 0; tap < job.kernel_h; ++tap) {
      const int64_t row = top + tap * job.dilation_h;
      const bool outside = row < 0 || row >= job.h;
      const float* const x = job.x.data + (image * job.h + row) * job.w * job.x.pitch;
      for (int64_t s = 0; s < across_; ++s, pointers += step) {
        int64_t column = left + s * job.dilation_w;
        for (int64_t n = 0; n < count; ++n, column += job.stride_w) {
          if (outside || column + taps_ <= 0 || column >= job.w) {
            pointers[n] = zeros;
          } else if (column >= 0 && column + taps_ <= job.w) {
            pointers[n] = x + column * job.x.pitch;
          } else {
            pointers[n] = copy(x, column, copies + n * depth() + tap * length_);
          }
        }
      }
    }
  }

  // A row of taps from `column` on, with zeros for what lies beyond the map.
  const float* copy(const float* x, int64_t column, float* to) const {
    for (int64_t t = 0; t < taps_; ++t) {
      const bool inside = column + t >= 0 && column + t < job.w;
      for (int64_t c = 0; c < job.c; ++c) to[t * job.c + c] = inside ? x[(column + t) * job.c + c] : 0.0f;
    }
    return to;
  }

  int64_t taps_, across_, segments_, length_;
};

}  // namespace

// Winograd's minimal filtering F(M x M, 3 x 3): M x M outputs of (M + 2) x (M + 2) inputs. Only for level.cpp.
#pragma once

#include "cpu/conv/epilogue.h"
#include "cpu/conv/gemm.h"

namespace {

// out[i] = sum over j of Matrix::value[i][j] * in[j]; what is zero or one costs nothing.
template <class Matrix, int Rows, int Columns>
inline void apply(const Vec* in, int in_step, Vec* out, int out_step) {
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
    Vec sum = {};
    bool begun = false;
#pragma GCC unroll 8
    for (int j = 0; j < Columns; ++j) {
      const float weight = Matrix::value[i][j];
      if (weight == 0.0f) continue;
      const Vec x = in[j * in_step];
      if (weight == 1.0f) {
        sum = begun ? sum + x : x;
      } else if (weight == -1.0f) {
        sum = begun ? sum - x : -x;
      } else {
        sum = begun ? fused(spread(weight), x, sum) : spread(weight) * x;
      }
      begun = true;
    }
    out[i * out_step] = sum;
  }
}

// Cook-Toom matrices of F(M, 3) for the points 0, 1, -1, 1/2, -2, infinity (M = 4) and 0, 1, -1, infinity (M = 2);
// the weights' side is gaia_fast/ops/convolution/packing.py.
template <int M>
struct Winograd;

template <>
struct Winograd<2> {
  struct Input {
    static constexpr float value[4][4] = {{-1, 0, 1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, -1, 0, 1}};
  };
  struct Output {
    static constexpr float value[2][4] = {{1, 1, 1, 0}, {0, 1, -1, 1}};
  };
};

template <>
struct Winograd<4> {
  struct Input {
    static constexpr float value[6][6] = {{1, -1.5f, -2, 1.5f, 1, 0}, {0, -1, 0.5f, 2.5f, 1, 0},
                                          {0, 1, -2.5f, 0.5f, 1, 0},  {0, -2, -1, 2, 1, 0},
                                          {0, 0.5f, -1, -0.5f, 1, 0}, {0, 1, -1.5f, -2, 1.5f, 1}};
  };
  struct Output {
    static constexpr float value[4][6] = {
        {1, 1, 1, 1, 1, 0}, {0, 1, -1, 0.5f, -2, 0}, {0, 1, 1, 0.25f, 4, 0}, {0, 1, -1, 0.125f, -8, 1}};
  };
};

// Makes V of the input and y of the products, tile by tile of M x M outputs.
template <int M>
struct WinogradConvolution {
  static constexpr int kSide = M + 2, kPositions = kSide * kSide;
  const Convolution& job;
  int64_t down, across;

  explicit WinogradConvolution(const Convolution& job)
      : job(job), down((job.out_h + M - 1) / M), across((job.out_w + M - 1) / M) {}
  int64_t tiles() const { return down * across; }
  int64_t depth() const { return job.c; }
  int64_t rows() const { return rows_in_cache(kPositions * (depth() + job.k)); }

  void gather(int64_t image, int64_t tile, float* v, int64_t step) const {
    const int64_t top = tile / across * M - job.pad_h, left = tile % across * M - job.pad_w;
    const float* const x = job.x + image * job.h * job.w * job.c;
    for (int64_t c = 0; c < job.c; c += kLanes) {
      Vec half[kSide][kSide];
      for (int j = 0; j < kSide; ++j) {
        Vec d[kSide];
        const bool column = left + j >= 0 && left + j < job.w;
#pragma GCC unroll 8
        for (int i = 0; i < kSide; ++i) {
          const bool inside = column && top + i >= 0 && top + i < job.h;
          d[i] = inside ? Float32::load(x + ((top + i) * job.w + left + j) * job.c + c) : Vec{};
        }
        apply<typename Winograd<M>::Input, kSide, kSide>(d, 1, &half[0][j], kSide);
      }
      for (int i = 0; i < kSide; ++i) {
        Vec done[kSide];
        apply<typename Winograd<M>::Input, kSide, kSide>(half[i], 1, done, 1);
#pragma GCC unroll 8
        for (int j = 0; j < kSide; ++j) Float32::store(v + (i * kSide + j) * step + c, done[j]);
      }
    }
  }

  Vec finish(const Epilogue& epilogue, int64_t image, int64_t tile, const float* m, int64_t step, int64_t k) const {
    Vec half[M][kSide], sum = {};
    for (int j = 0; j < kSide; ++j) {
      Vec column[kSide];
#pragma GCC unroll 8
      for (int i = 0; i < kSide; ++i) column[i] = Float32::load(m + (i * kSide + j) * step + k);
      apply<typename Winograd<M>::Output, M, kSide>(column, 1, &half[0][j], kSide);
    }
    const int64_t top = tile / across * M, left = tile % across * M;
    for (int i = 0; i < M && top + i < job.out_h; ++i) {
      Vec row[M];
      apply<typename Winograd<M>::Output, M, kSide>(half[i], 1, row, 1);
      const int64_t position = (image * job.out_h + top + i) * job.out_w + left;
      for (int j = 0; j < M && left + j < job.out_w; ++j) sum += epilogue(row[j], position + j, k);
    }
    return sum;
  }
};

}  // namespace

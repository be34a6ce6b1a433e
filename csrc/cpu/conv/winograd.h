// Winograd's minimal filtering F(M x M, 3 x 3): M x M outputs of (M + 2) x (M + 2) inputs. Only for level.cpp.
#pragma once

#include "cpu/conv/chunk.h"
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

// A tile of M x M outputs is a row of a product for each of (M + 2)^2 positions. All inputs of a chunk are transformed;
// the products of one group of panels are made, and turned into outputs while they are in the cache.
template <int M>
class WinogradConvolution {
 public:
  const Convolution& job;

  explicit WinogradConvolution(const Convolution& job)
      : job(job), down_((job.out_h + M - 1) / M), across_((job.out_w + M - 1) / M) {}

  int64_t tiles() const { return down_ * across_; }
  int64_t panels() const { return job.k / kNr; }
  double operations() const {
    return 2.0 * static_cast<double>((kPositions * job.c + 1) * job.n * tiles()) * static_cast<double>(job.k);
  }
  int64_t rows() const { return rows_in_cache(kPositions * (job.c + kGroup * kNr)); }
  int64_t least_rows() const { return kLeastSquares; }
  int64_t scratch(int64_t rows) const { return kPositions * (step_v(rows) + step_m(rows)) + 2 * rows + kAliasGap; }

  void run(const Chunk& chunk, float* v) const {
    const int64_t rows = chunk.rows();
    float* const m = v + kPositions * step_v(rows);
    const float** const pointers = reinterpret_cast<const float**>(m + kPositions * step_m(rows));
    int64_t row = 0;
    chunk.each_row([&](int64_t image, int64_t tile, float*) {
      pointers[row] = v + row * job.c;
      transform(image, tile, v + row * job.c, step_v(rows));
      ++row;
    });
    chunk.each_group(panels(), [&](int64_t panels, int64_t begin, int64_t end, int64_t first) {
      const float* const packed = job.packed + first * kNr * kPositions * job.c;
      for (int position = 0; position < kPositions; ++position) {
        const Matrix a = {pointers, rows, job.c, position * step_v(rows)};
        const Product product = {m + position * step_m(rows), nullptr, nullptr};
        multiply_group(rows, a, job.c, packed + position * job.c * panels * kNr, panels, begin, end, product, 0);
      }
      const float* products = m;
      chunk.each_row([&](int64_t image, int64_t tile, float* sums) {
        outputs(image, tile, products, step_m(rows), sums, first * kNr, begin * kNr, end * kNr);
        products += kGroup * kNr;
      });
    });
  }

 private:
  static constexpr int kSide = M + 2, kPositions = kSide * kSide;

  // Floats between the matrices of two positions: with a gap, or equal places of all would share a set of the cache.
  int64_t step_v(int64_t rows) const { return rows * job.c + kAliasGap; }
  int64_t step_m(int64_t rows) const { return rows * kGroup * kNr + kAliasGap; }

  void transform(int64_t image, int64_t tile, float* v, int64_t step) const {
    const int64_t top = tile / across_ * M - job.pad_h, left = tile % across_ * M - job.pad_w;
    const float* const x = job.x.data + image * job.h * job.w * job.x.pitch;
    for (int64_t c = 0; c < job.c; c += kLanes) {
      Vec half[kSide][kSide];
      for (int j = 0; j < kSide; ++j) {
        Vec d[kSide];
        const bool column = left + j >= 0 && left + j < job.w;
#pragma GCC unroll 8
        for (int i = 0; i < kSide; ++i) {
          const bool inside = column && top + i >= 0 && top + i < job.h;
          d[i] = inside ? Float32::load(x + ((top + i) * job.w + left + j) * job.x.pitch + c) : Vec{};
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

  // The outputs of a tile, columns `begin` to `end` of the group whose first output is channel k.
  [[gnu::flatten]] void outputs(int64_t image, int64_t tile, const float* m, int64_t step, float* sums, int64_t k,
                                int64_t begin, int64_t end) const {
    const int64_t top = tile / across_ * M, left = tile % across_ * M;
    const bool whole = top + M <= job.out_h && left + M <= job.out_w;
    Output out[M * M];
    for (int i = 0; i < M; ++i) {
      for (int j = 0; j < M; ++j) out[i * M + j] = {(image * job.out_h + top + i) * job.out_w + left + j, sums};
    }
    for (int64_t column = begin; column < end; column += kLanes) {
      Vec z[M * M][1];
      back_transform(m + column, step, &z[0][0]);
      if (whole) {
        finish(job, z, out, k + column);
        continue;
      }
      for (int i = 0; i < M && top + i < job.out_h; ++i) {
        for (int j = 0; j < M && left + j < job.out_w; ++j) {
          Vec one[1][1] = {{z[i * M + j][0]}};
          finish(job, one, out + i * M + j, k + column);
        }
      }
    }
  }

  static void back_transform(const float* m, int64_t step, Vec* z) {
    Vec half[M][kSide];
#pragma GCC unroll 8
    for (int j = 0; j < kSide; ++j) {
      Vec column[kSide];
#pragma GCC unroll 8
      for (int i = 0; i < kSide; ++i) column[i] = Float32::load(m + (i * kSide + j) * step);
      apply<typename Winograd<M>::Output, M, kSide>(column, 1, &half[0][j], kSide);
    }
#pragma GCC unroll 8
    for (int i = 0; i < M; ++i) apply<typename Winograd<M>::Output, M, kSide>(half[i], 1, z + i * M, 1);
  }

  int64_t down_, across_;
};

}  // namespace

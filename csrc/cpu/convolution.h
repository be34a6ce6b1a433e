// Convolutions of channels-last float32 maps with what stands behind them in one pass: bias, residual, ReLU or gate,
// and a sum over space. Only for level.cpp.
//
// A chunk of tiles (an output position, or M x M of them) becomes a matrix V, a row a tile, for each of the positions
// that the form has: 1 with V the windows themselves, (M + 2)^2 in Winograd's minimal filtering F(M x M, 3 x 3). Each
// is multiplied with its packed weights, and the products are turned into outputs while they are in the cache.
#pragma once

#include <stdlib.h>

#include "kernels.h"
#include "simd.h"

namespace {

using gaia::cpu::Convolution;

constexpr int kGroup = 16;                     // output channels that are packed together
constexpr int kVecs = kGroup / kLanes;         // vectors of such a group
constexpr int kGroups = kLanes == 16 ? 2 : 1;  // groups that one call of `multiply` makes
constexpr int kRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 3;
constexpr int64_t kDepth = 256;              // input channels multiplied before the next rows' turn
constexpr int64_t kScratch = 224 * 1024;     // floats of V and M that a chunk should not exceed
constexpr int64_t kGap = 16;                 // floats
constexpr double kAlone = 12e6;              // operations below which waking other threads costs more than it saves
constexpr int64_t kFewest = 24, kMost = 96;  // rows of a chunk

inline Vec fused(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

inline Vec spread(float x) { return x - Vec{}; }

// m[r][:] (+)= sum over c of v[r][c] * u[c][:], for R rows and G groups of columns.
template <int R, int G>
void multiply(const float* v, int64_t ldv, const float* u, int64_t group, int64_t depth, const float* ahead, float* m,
              int64_t ldm, bool add) {
  Vec acc[R][G * kVecs] = {};
  for (int64_t c = 0; c < depth; ++c) {
    __builtin_prefetch(ahead + c * kGroup);
    Vec w[G * kVecs];
#pragma GCC unroll 4
    for (int j = 0; j < G * kVecs; ++j) w[j] = Float32::load(u + j / kVecs * group + c * kGroup + j % kVecs * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec a = spread(v[r * ldv + c]);
#pragma GCC unroll 4
      for (int j = 0; j < G * kVecs; ++j) acc[r][j] = fused(a, w[j], acc[r][j]);
    }
  }
  // Parts are added up on their own: one chain of thousands of additions would round far more.
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < G * kVecs; ++j) {
      float* const to = m + r * ldm + j * kLanes;
      Float32::store(to, add ? acc[r][j] + Float32::load(to) : acc[r][j]);
    }
  }
}

template <int R, int G>
void multiply_rows(int64_t rows, const float* v, int64_t ldv, const float* u, int64_t group, int64_t depth,
                   const float* ahead, float* m, int64_t ldm, bool add) {
  if (rows == R) return multiply<R, G>(v, ldv, u, group, depth, ahead, m, ldm, add);
  if constexpr (R > 1) multiply_rows<R - 1, G>(rows, v, ldv, u, group, depth, ahead, m, ldm, add);
}

// M (rows, K) = V (rows, depth) * U, for the output channels from `begin` to `end`.
void multiply_all(int64_t rows, const float* v, int64_t depth, const float* u, int64_t begin, int64_t end, float* m,
                  int64_t ldm) {
  const int64_t turns = (rows + kRows - 1) / kRows;
  for (int64_t c = 0; c < depth; c += kDepth) {
    const int64_t part = depth - c < kDepth ? depth - c : kDepth;
    for (int64_t k = begin; k < end;) {
      const bool full = end - k >= kGroups * kGroup;
      const float* from = u + (k / kGroup * depth + c) * kGroup;
      for (int64_t turn = 0, r = 0; turn < turns; ++turn) {
        const int64_t next = rows * (turn + 1) / turns;  // rows shared out evenly
        if (full) {
          const float* const ahead = from + (kGroups + turn % kGroups) * depth * kGroup;
          multiply_rows<kRows, kGroups>(next - r, v + r * depth + c, depth, from, depth * kGroup, part, ahead,
                                        m + r * ldm + k, ldm, c > 0);
        } else {
          multiply_rows<kRows, 1>(next - r, v + r * depth + c, depth, from, depth * kGroup, part, from + depth * kGroup,
                                  m + r * ldm + k, ldm, c > 0);
        }
        r = next;
      }
      k += full ? kGroups * kGroup : kGroup;
    }
  }
}

// What stands behind the convolution: writes y, returns what is summed over space.
struct Ending {
  const Convolution& job;
  Vec operator()(Vec z, int64_t position, int64_t k) const {
    const int64_t at = position * job.k + k;
    if (job.bias != nullptr) z += Float32::load(job.bias + k);
    if (job.residual != nullptr) z += Float32::load(job.residual + at);
    if (job.relu) z = (Vec)((IntVec)z & ~(IntVec)(z <= 0.0f));
    if (job.gate != nullptr) z = (Vec)((IntVec)z & ~(IntVec)(Float32::load(job.gate + at) <= 0.0f));
    Vec y = z;
    if (job.scale != nullptr) y = y * Float32::load(job.scale + k);
    if (job.skip != nullptr) y = y + Float32::load(job.skip + at);
    Float32::store(job.y + at, y);
    switch (job.statistic) {
      case gaia::cpu::kAbsSum: return (Vec)((IntVec)z & 0x7fffffff);
      case gaia::cpu::kPositive: return (Vec)((IntVec)(z > 0.0f) & (IntVec)spread(1.0f));
      default: return z;
    }
  }
};

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

// How a form cuts the output into tiles, and makes V of the input and y of the products.
template <int M>
struct Minimal {
  static constexpr int kSide = M + 2, kPositions = kSide * kSide;
  const Convolution& job;
  int64_t down, across;

  explicit Minimal(const Convolution& job) : job(job), down((job.out_h + M - 1) / M), across((job.out_w + M - 1) / M) {}
  int64_t tiles() const { return down * across; }
  int64_t depth() const { return job.c; }

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

  Vec finish(const Ending& ending, int64_t image, int64_t tile, const float* m, int64_t step, int64_t k) const {
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
      for (int j = 0; j < M && left + j < job.out_w; ++j) sum += ending(row[j], position + j, k);
    }
    return sum;
  }
};

struct Direct {
  static constexpr int kPositions = 1;
  const Convolution& job;

  explicit Direct(const Convolution& job) : job(job) {}
  int64_t tiles() const { return job.out_h * job.out_w; }
  int64_t depth() const { return job.kernel_h * job.kernel_w * job.c; }

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

  Vec finish(const Ending& ending, int64_t image, int64_t tile, const float* m, int64_t, int64_t k) const {
    return ending(Float32::load(m + k), image * tiles() + tile, k);
  }
};

// Grows, and stays with its thread: fresh pages would cost as much as a small convolution.
struct Scratch {
  float* data = nullptr;
  int64_t size = 0;
  float* take(int64_t floats) {
    if (floats > size) {
      free(data);
      data = static_cast<float*>(aligned_alloc(64, static_cast<size_t>((floats * 4 + 63) / 64 * 64)));
      size = data != nullptr ? floats : 0;
    }
    return data;
  }
  ~Scratch() { free(data); }
};

template <class Form>
bool convolve(const Form& form, int threads) {
  const Convolution& job = form.job;
  const int64_t tiles = form.tiles(), depth = form.depth();
  // A chunk is a piece of one image, or some images whole: sums do not depend on the number of images, or threads.
  int64_t most = kScratch / (Form::kPositions * (depth + job.k));
  most = most < kFewest ? kFewest : most > kMost ? kMost : most;
  int64_t pieces = (tiles + most - 1) / most;
  if (pieces > 1) pieces += pieces % 2;
  int64_t images = pieces > 1 ? 1 : most / tiles;
  if (pieces == 1 && job.n < images * threads)
    images = job.n * tiles <= kMost ? job.n : (job.n + threads - 1) / threads;
  const int64_t chunks = (job.n + images - 1) / images * pieces;
  const int64_t groups = job.k / kGroup;
  int64_t splits = chunks >= threads ? 1 : threads;
  if (splits > (groups + kGroups - 1) / kGroups) splits = (groups + kGroups - 1) / kGroups;
  const int64_t rows = pieces > 1 ? (tiles + pieces - 1) / pieces : images * tiles;

  static thread_local Scratch shared;
  float* partial = job.sums;
  if (job.sums != nullptr && pieces > 1) {
    partial = shared.take(job.n * pieces * job.k);
    if (partial == nullptr) return false;
  }
  const int64_t work = chunks * splits;
  const double operations = 2.0 * Form::kPositions * static_cast<double>(job.n * tiles * depth * job.k);
  bool enough = true;
#pragma omp parallel num_threads(threads) if (threads > 1 && work > 1 && operations > kAlone) reduction(&& : enough)
  {
    const FloatMode mode;
    static thread_local Scratch own;
    // Between the matrices of two positions lies a gap, or equal places of all would share a set of the cache.
    const int64_t step_v = rows * depth + kGap, step_m = rows * job.k + kGap;
    float* const v = own.take(Form::kPositions * (step_v + step_m));
    enough = v != nullptr;
    float* const m = enough ? v + Form::kPositions * step_v : nullptr;
    const Ending ending{job};
#pragma omp for schedule(dynamic)
    for (int64_t item = 0; item < (enough ? work : 0); ++item) {
      const int64_t chunk = item / splits, split = item % splits, piece = chunk % pieces;
      const int64_t first = chunk / pieces * images;
      const int64_t last = first + images < job.n ? first + images : job.n;
      const int64_t from = tiles * piece / pieces, to = tiles * (piece + 1) / pieces, each = to - from;
      const int64_t count = (last - first) * each;
      const int64_t begin = groups * split / splits * kGroup, end = groups * (split + 1) / splits * kGroup;
      for (int64_t r = 0; r < count; ++r) form.gather(first + r / each, from + r % each, v + r * depth, step_v);
      for (int position = 0; position < Form::kPositions; ++position) {
        multiply_all(count, v + position * step_v, depth, job.packed + position * depth * job.k, begin, end,
                     m + position * step_m, job.k);
      }
      for (int64_t image = first; image < last; ++image) {
        for (int64_t k = begin; k < end; k += kLanes) {
          Vec sum = {};
          for (int64_t tile = 0; tile < each; ++tile) {
            const float* row = m + ((image - first) * each + tile) * job.k;
            sum += form.finish(ending, image, from + tile, row, step_m, k);
          }
          if (job.sums != nullptr) Float32::store(partial + (image * pieces + piece) * job.k + k, sum);
        }
      }
    }
  }
  if (!enough) return false;
  for (int64_t image = 0; job.sums != nullptr && pieces > 1 && image < job.n; ++image) {
    for (int64_t k = 0; k < job.k; k += kLanes) {
      Vec sum = {};
      for (int64_t piece = 0; piece < pieces; ++piece)
        sum += Float32::load(partial + (image * pieces + piece) * job.k + k);
      Float32::store(job.sums + image * job.k + k, sum);
    }
  }
  return true;
}

bool convolution(const Convolution& job, int threads) {
  switch (job.tile) {
    case 4: return convolve(Minimal<4>(job), threads);
    case 2: return convolve(Minimal<2>(job), threads);
    default: return convolve(Direct(job), threads);
  }
}

}  // namespace

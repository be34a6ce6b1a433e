// Convolutions of channels-last float32 maps with what stands behind them in one pass: bias, residual, ReLU or gate,
// and a sum over space; cut into items that threads may take in any order. Only for chain.h.
//
// A chunk of tiles (an output position, or M x M of them) becomes a matrix V, a row a tile, for each of the positions
// that the form has: 1 with V the windows themselves, (M + 2)^2 in Winograd's minimal filtering F(M x M, 3 x 3). Each
// is multiplied with its packed weights, and the products are turned into outputs while they are in the cache.
#pragma once

#include "kernels.h"
#include "simd.h"

namespace {

using gaia::cpu::Convolution;

constexpr int kGroup = gaia::cpu::kPackedGroup;
constexpr int kVecs = kGroup / kLanes;         // vectors of such a group
constexpr int kGroups = kLanes == 16 ? 2 : 1;  // groups that one call of `multiply` makes
constexpr int kRows = kLanes == 16 ? 12 : kLanes == 8 ? 6 : 3;
constexpr int64_t kDepth = gaia::cpu::kPackedDepth;
constexpr int64_t kScratch = 224 * 1024;     // floats of V and M that a chunk should not exceed
constexpr int64_t kGap = 16;                 // floats
constexpr double kWhole = 5e5;               // operations below which an item is not shared out
constexpr int64_t kFewest = 24, kMost = 96;  // rows of a chunk

// Rows of a chunk, each with so many floats of V and M.
inline int64_t rows_in_cache(int64_t floats) {
  const int64_t most = kScratch / floats;
  return most < kFewest ? kFewest : most > kMost ? kMost : most;
}

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
void multiply(const float* v, int64_t ldv, const float* u, int64_t group, int64_t depth, const float* ahead,
              int64_t ahead_step, float* m, int64_t ldm, bool add) {
  Vec acc[R][G * kVecs] = {};
  for (int64_t c = 0; c < depth; ++c) {
    // Not kept beyond the nearest cache: a network's weights would sweep the others.
    __builtin_prefetch(ahead + c * kGroup, 0, 0);
    if constexpr (G > 1) __builtin_prefetch(ahead + ahead_step + c * kGroup, 0, 0);
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
                   const float* ahead, int64_t ahead_step, float* m, int64_t ldm, bool add) {
  if (rows == R) return multiply<R, G>(v, ldv, u, group, depth, ahead, ahead_step, m, ldm, add);
  if constexpr (R > 1) multiply_rows<R - 1, G>(rows, v, ldv, u, group, depth, ahead, ahead_step, m, ldm, add);
}

// M (rows, K) = V (rows, depth) * U, for the output channels from `begin` to `end`. U is read in the order in which it
// lies: parts of kDepth inputs, in each the groups of outputs, in each the inputs.
void multiply_all(int64_t rows, const float* v, int64_t depth, const float* u, int64_t begin, int64_t end, float* m,
                  int64_t ldm) {
  const int64_t turns = (rows + kRows - 1) / kRows;
  for (int64_t r = 0; depth == 0 && r < rows; ++r) {
    for (int64_t k = begin; k < end; ++k) m[r * ldm + k] = 0.0f;
  }
  for (int64_t c = 0; c < depth; c += kDepth) {
    const int64_t part = depth - c < kDepth ? depth - c : kDepth, group = part * kGroup;
    for (int64_t k = begin; k < end;) {
      const bool full = end - k >= kGroups * kGroup;
      const float* const from = u + c * ldm + k * part;
      const float* const next_groups = from + (full ? kGroups : 1) * group;
      for (int64_t turn = 0, r = 0; turn < turns; ++turn) {
        const int64_t next = rows * (turn + 1) / turns;  // rows shared out evenly
        // The next groups are fetched evenly over the turns: memory would be waited for in one, and idle in the others.
        const float* const ahead = next_groups + turn % kGroups * group;
        const int64_t ahead_step = turns == 1 ? group : 0;
        const float* const rows_v = v + r * depth + c;
        float* const rows_m = m + r * ldm + k;
        if (full) {
          multiply_rows<kRows, kGroups>(next - r, rows_v, depth, from, group, part, ahead, ahead_step, rows_m, ldm,
                                        c > 0);
        } else {
          multiply_rows<kRows, 1>(next - r, rows_v, depth, from, group, part, ahead, ahead_step, rows_m, ldm, c > 0);
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

  Vec finish(const Ending& ending, int64_t image, int64_t tile, const float* m, int64_t, int64_t k) const {
    const int64_t i = job.begin_h + tile / job.out_w * job.step_h, j = job.begin_w + tile % job.out_w * job.step_w;
    return ending(Float32::load(m + k), (image * job.y_h + i) * job.y_w + j, k);
  }
};

// No convolution: each position's channels times their factors.
struct Pointwise {
  static constexpr int kPositions = 0;
  const Convolution& job;

  explicit Pointwise(const Convolution& job) : job(job) {}
  int64_t tiles() const { return job.out_h * job.out_w; }
  int64_t depth() const { return 0; }
  int64_t rows() const { return 1 + 16 * 1024 / job.k; }
  void gather(int64_t, int64_t, float*, int64_t) const {}

  Vec finish(const Ending& ending, int64_t image, int64_t tile, const float*, int64_t, int64_t k) const {
    const int64_t position = image * tiles() + tile;
    Vec z = Float32::load(job.x + position * job.k + k);
    if (job.factor != nullptr) z = z * Float32::load(job.factor + k);
    return ending(z, position, k);
  }
};

template <class Use>
auto with_form(const Convolution& job, Use use) {
  switch (job.tile) {
    case 4: return use(Minimal<4>(job));
    case 2: return use(Minimal<2>(job));
    case 1: return use(Direct(job));
    default: return use(Pointwise(job));
  }
}

// How a convolution is cut into items. A chunk of tiles is a piece of one image, or some images whole: sums do not
// depend on the number of images, or of threads. Where chunks are fewer than threads, each is split by outputs.
struct Cut {
  int64_t tiles, depth, pieces, images, splits;
  int64_t items;           // chunks times splits
  int64_t step_v, step_m;  // floats between the matrices of two positions
  int64_t scratch;         // floats that an item needs
  double operations;
};

template <class Form>
Cut cut(const Form& form, int threads) {
  const Convolution& job = form.job;
  Cut made = {};
  made.tiles = form.tiles(), made.depth = form.depth();
  const int64_t most = form.rows();
  made.pieces = (made.tiles + most - 1) / most;
  if (made.pieces > 1) made.pieces += made.pieces % 2;
  made.images = made.pieces > 1 ? 1 : most / made.tiles;
  if (made.pieces == 1 && job.n < made.images * threads)
    made.images = job.n * made.tiles <= kMost ? job.n : (job.n + threads - 1) / threads;
  const int64_t chunks = (job.n + made.images - 1) / made.images * made.pieces;
  const int64_t rows = made.pieces > 1 ? (made.tiles + made.pieces - 1) / made.pieces : made.images * made.tiles;
  // Between the matrices of two positions lies a gap, or equal places of all would share a set of the cache.
  made.step_v = rows * made.depth + kGap, made.step_m = rows * job.k + kGap;
  made.scratch = Form::kPositions * (made.step_v + made.step_m);
  made.operations = 2.0 * static_cast<double>((Form::kPositions * made.depth + 1) * job.n * made.tiles * job.k);
  const int64_t parts = (job.k / kGroup + kGroups - 1) / kGroups;
  made.splits = chunks >= threads || made.operations < kWhole ? 1 : threads < parts ? threads : parts;
  made.items = chunks * made.splits;
  return made;
}

// Runs one item; the sums of piece p of an image go to totals + image * pitch + p * k.
template <class Form>
void run(const Form& form, const Cut& cut, int64_t item, float* v, float* totals, int64_t pitch) {
  const Convolution& job = form.job;
  const Ending ending{job};
  const int64_t chunk = item / cut.splits, split = item % cut.splits, piece = chunk % cut.pieces;
  const int64_t first = chunk / cut.pieces * cut.images;
  const int64_t last = first + cut.images < job.n ? first + cut.images : job.n;
  const int64_t from = cut.tiles * piece / cut.pieces, to = cut.tiles * (piece + 1) / cut.pieces, each = to - from;
  const int64_t count = (last - first) * each, groups = job.k / kGroup;
  const int64_t begin = groups * split / cut.splits * kGroup, end = groups * (split + 1) / cut.splits * kGroup;
  float* const m = v + Form::kPositions * cut.step_v;
  if constexpr (Form::kPositions > 0) {
    for (int64_t r = 0; r < count; ++r) form.gather(first + r / each, from + r % each, v + r * cut.depth, cut.step_v);
    for (int position = 0; position < Form::kPositions; ++position) {
      multiply_all(count, v + position * cut.step_v, cut.depth, job.packed + position * cut.depth * job.k, begin, end,
                   m + position * cut.step_m, job.k);
    }
  }
  for (int64_t image = first; image < last; ++image) {
    for (int64_t k = begin; k < end; k += kLanes) {
      Vec sum = {};
      for (int64_t tile = 0; tile < each; ++tile) {
        const float* const row = m + ((image - first) * each + tile) * job.k;
        sum += form.finish(ending, image, from + tile, row, cut.step_m, k);
      }
      if (job.sums != nullptr) Float32::store(totals + image * pitch + piece * job.k + k, sum);
    }
  }
}

}  // namespace

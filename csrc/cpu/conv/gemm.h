// The GEMM micro-kernel, and a product of rows with packed weights. Only for level.cpp.
#pragma once

#include "cpu/conv/epilogue.h"
#include "cpu/tuning.h"

namespace {

// A matrix whose rows are made of segments of equal length that lie anywhere: segment s of row r begins `offset` floats
// behind segments[s * count + r]. (The indirection buffer of M. Dukhan, The Indirect Convolution Algorithm, 2019.)
struct Matrix {
  const float* const* segments;
  int64_t count, length, offset;
};

// Where a product goes. Each row of `products` holds the columns of one group of panels. With a convolution, the last
// part of the depth is finished into its outputs.
struct Product {
  float* products;
  const Convolution* job;  // or null
  const Output* outputs;
};

// Inputs from the `inside`-th of a segment on.
struct Part {
  int64_t segment, inside, depth;
  bool first, last;
};

// The weights that are needed next, fetched while the micro-kernel works: a panel a turn, or where turns are few, all.
struct Ahead {
  const float* weights;
  int64_t step;  // between the panels that are fetched at once; 0 for one
};

// Adds so many inputs from c on to acc, row by row: the pointers of many rows are no registers, and each is read once.
template <int Inputs, int R, int V>
inline void add_products(const float* const (&v)[R], int64_t c, const float* u, int64_t panel, Vec (&acc)[R][V]) {
  Vec w[Inputs][V];
#pragma GCC unroll 4
  for (int i = 0; i < Inputs; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < V; ++j)
      w[i][j] = Float32::load(u + j / kPanelVecs * panel + (c + i) * kNr + j % kPanelVecs * kLanes);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int i = 0; i < Inputs; ++i) {
      const Vec x = spread(v[r][c + i]);
#pragma GCC unroll 4
      for (int j = 0; j < V; ++j) acc[r][j] = fused(x, w[i][j], acc[r][j]);
    }
  }
}

inline void fetch_ahead(const Ahead& ahead, int64_t c) {
  __builtin_prefetch(ahead.weights + c * kNr, 0, kPanelLocality);
  if (ahead.step == 0) return;
#pragma GCC unroll 4
  for (int p = 1; p < kPanels; ++p) __builtin_prefetch(ahead.weights + p * ahead.step + c * kNr, 0, kPanelLocality);
}

// acc = sum over inputs of row r times weights, for R rows and V vectors of columns.
template <int R, int V>
inline void multiply(const Matrix& a, int64_t row, const Part& part, const float* u, const Ahead& ahead,
                     Vec (&acc)[R][V]) {
  const int64_t panel = part.depth * kNr;
  int64_t segment = part.segment, inside = part.inside;
  for (int64_t c = 0; c < part.depth; ++segment, inside = 0) {
    const int64_t left = c + a.length - inside, end = left < part.depth ? left : part.depth;
    const float* v[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) v[r] = a.segments[segment * a.count + row + r] + (a.offset + inside - c);
    constexpr int kInputs = kInputsAtOnce<V>;
    if constexpr (kInputs > 1) {
      for (; c + kInputs <= end; c += kInputs) {
#pragma GCC unroll 4
        for (int i = 0; i < kInputs; ++i) fetch_ahead(ahead, c + i);
        add_products<kInputs>(v, c, u, panel, acc);
      }
    }
    for (; c < end; ++c) {
      fetch_ahead(ahead, c);
      add_products<1>(v, c, u, panel, acc);
    }
  }
}

// One tile of a product: R rows from `row` on, V vectors of columns from `column` of the group, channel k. Flattened,
// so that it stays in registers until it is finished.
template <int R, int V>
[[gnu::flatten]] void tile(const Matrix& a, int64_t row, const Part& part, const float* u, const Ahead& ahead,
                           const Product& product, int64_t column, int64_t k) {
  Vec acc[R][V] = {};
  if (part.last && product.job != nullptr && part.depth <= kShallow)
    fetch_outputs<R, V>(*product.job, product.outputs + row, k);
  multiply(a, row, part, u, ahead, acc);
  float* const m = product.products + row * kGroup * kNr + column;
  // Parts are added up on their own: one chain of thousands of additions would round far more.
  if (!part.first) each(acc, [&](Vec x, int r, int j) { return x + Float32::load(m + r * kGroup * kNr + j * kLanes); });
  if (part.last && product.job != nullptr) return finish(*product.job, acc, product.outputs + row, k);
  each(acc, [&](Vec x, int r, int j) {
    Float32::store(m + r * kGroup * kNr + j * kLanes, x);
    return x;
  });
}

template <int V, int R = kMr<V>>
void tile_rows(int64_t rows, const Matrix& a, int64_t row, const Part& part, const float* u, const Ahead& ahead,
               const Product& product, int64_t column, int64_t k) {
  if (rows == R) return tile<R, V>(a, row, part, u, ahead, product, column, k);
  if constexpr (R > 1) tile_rows<V, R - 1>(rows, a, row, part, u, ahead, product, column, k);
}

// All rows with V vectors of columns: in turns that share them out evenly.
template <int V>
void multiply_rows(int64_t rows, const Matrix& a, const Part& part, const float* u, const float* next,
                   const Product& product, int64_t column, int64_t k) {
  const int64_t turns = (rows + kMr<V> - 1) / kMr<V>, panel = part.depth * kNr;
  for (int64_t turn = 0, row = 0; turn < turns; ++turn) {
    const int64_t end = rows * (turn + 1) / turns;
    const Ahead ahead = turns < kPanels ? Ahead{next, panel} : Ahead{next + turn % kPanels * panel, 0};
    tile_rows<V>(end - row, a, row, part, u, ahead, product, column, k);
    row = end;
  }
}

template <int V = kPanels * kPanelVecs>
void multiply_panels(int panels, int64_t rows, const Matrix& a, const Part& part, const float* u, const float* next,
                     const Product& product, int64_t column, int64_t k) {
  if (panels * kPanelVecs == V) return multiply_rows<V>(rows, a, part, u, next, product, column, k);
  if constexpr (V > kPanelVecs) multiply_panels<V - kPanelVecs>(panels, rows, a, part, u, next, product, column, k);
}

// The product of `rows` rows of `depth` inputs with panels `begin` to `end` of a group of `panels`, whose first outputs
// are channels k. `u` are the group's weights, in parts of kKc inputs.
void multiply_group(int64_t rows, const Matrix& a, int64_t depth, const float* u, int64_t panels, int64_t begin,
                    int64_t end, const Product& product, int64_t k) {
  Part part = {0, 0, 0, true, false};
  for (int64_t c = 0; c == 0 || c < depth; c += kKc) {
    part.segment = a.length == 0 ? 0 : c / a.length, part.inside = c - part.segment * a.length;
    part.depth = depth - c < kKc ? depth - c : kKc, part.first = c == 0, part.last = depth - c <= kKc;
    const float* const weights = u + c * panels * kNr;
    for (int64_t p = begin; p < end;) {
      const int64_t most = end - p < kPanels ? end - p : kPanels;
      const float* const from = weights + p * part.depth * kNr;
      const float* const next = from + most * part.depth * kNr;
      multiply_panels(static_cast<int>(most), rows, a, part, from, next, product, p * kNr, k + p * kNr);
      p += most;
    }
  }
}

}  // namespace

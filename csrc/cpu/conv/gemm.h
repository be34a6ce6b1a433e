// The GEMM micro-kernel, and a product of a chunk of rows with packed weights. Only for level.cpp.
#pragma once

#include "cpu/tuning.h"

namespace {

// m[r][:] (+)= sum over c of v[r][c] * u[c][:], for R rows and G panels of columns.
template <int R, int G>
void multiply(const float* v, int64_t ldv, const float* u, int64_t panel, int64_t depth, const float* ahead,
              int64_t ahead_step, float* m, int64_t ldm, bool add) {
  Vec acc[R][G * kPanelVecs] = {};
  for (int64_t c = 0; c < depth; ++c) {
    __builtin_prefetch(ahead + c * kNr, 0, kPanelLocality);
    if constexpr (G > 1) __builtin_prefetch(ahead + ahead_step + c * kNr, 0, kPanelLocality);
    Vec w[G * kPanelVecs];
#pragma GCC unroll 4
    for (int j = 0; j < G * kPanelVecs; ++j)
      w[j] = Float32::load(u + j / kPanelVecs * panel + c * kNr + j % kPanelVecs * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec a = spread(v[r * ldv + c]);
#pragma GCC unroll 4
      for (int j = 0; j < G * kPanelVecs; ++j) acc[r][j] = fused(a, w[j], acc[r][j]);
    }
  }
  // Parts are added up on their own: one chain of thousands of additions would round far more.
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int j = 0; j < G * kPanelVecs; ++j) {
      float* const to = m + r * ldm + j * kLanes;
      Float32::store(to, add ? acc[r][j] + Float32::load(to) : acc[r][j]);
    }
  }
}

template <int R, int G>
void multiply_rows(int64_t rows, const float* v, int64_t ldv, const float* u, int64_t panel, int64_t depth,
                   const float* ahead, int64_t ahead_step, float* m, int64_t ldm, bool add) {
  if (rows == R) return multiply<R, G>(v, ldv, u, panel, depth, ahead, ahead_step, m, ldm, add);
  if constexpr (R > 1) multiply_rows<R - 1, G>(rows, v, ldv, u, panel, depth, ahead, ahead_step, m, ldm, add);
}

// M (rows, K) = V (rows, depth) * U, for the output channels from `begin` to `end`. U is read in the order in which it
// lies: parts of kKc inputs, in each the panels of kNr outputs, in each the inputs.
void multiply_all(int64_t rows, const float* v, int64_t depth, const float* u, int64_t begin, int64_t end, float* m,
                  int64_t ldm) {
  const int64_t turns = (rows + kMr - 1) / kMr;
  for (int64_t r = 0; depth == 0 && r < rows; ++r) {
    for (int64_t k = begin; k < end; ++k) m[r * ldm + k] = 0.0f;
  }
  for (int64_t c = 0; c < depth; c += kKc) {
    const int64_t part = depth - c < kKc ? depth - c : kKc, panel = part * kNr;
    for (int64_t k = begin; k < end;) {
      const bool full = end - k >= kPanels * kNr;
      const float* const from = u + c * ldm + k * part;
      const float* const next_panels = from + (full ? kPanels : 1) * panel;
      for (int64_t turn = 0, r = 0; turn < turns; ++turn) {
        const int64_t next = rows * (turn + 1) / turns;  // rows shared out evenly
        // The next panels are fetched evenly over the turns: memory would be waited for in one, and idle in the others.
        const float* const ahead = next_panels + turn % kPanels * panel;
        const int64_t ahead_step = turns == 1 ? panel : 0;
        const float* const rows_v = v + r * depth + c;
        float* const rows_m = m + r * ldm + k;
        if (full) {
          multiply_rows<kMr, kPanels>(next - r, rows_v, depth, from, panel, part, ahead, ahead_step, rows_m, ldm,
                                      c > 0);
        } else {
          multiply_rows<kMr, 1>(next - r, rows_v, depth, from, panel, part, ahead, ahead_step, rows_m, ldm, c > 0);
        }
        r = next;
      }
      k += full ? kPanels * kNr : kNr;
    }
  }
}

}  // namespace

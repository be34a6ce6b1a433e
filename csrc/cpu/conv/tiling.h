// A convolution, cut into work items that threads may take in any order, and the run of one item. Only for executor.h.
//
// A chunk of tiles (an output position, or M x M of them) becomes a matrix V, a row a tile, for each of the positions
// that the algorithm has: 1 for im2col, (M + 2)^2 for Winograd's F(M x M, 3 x 3). Each is multiplied with its packed
// weights, and the products are turned into outputs while they are in the cache.
#pragma once

#include "cpu/conv/im2col.h"
#include "cpu/conv/pointwise.h"
#include "cpu/conv/winograd.h"

namespace {

template <class Use>
auto with_algorithm(const Convolution& job, Use use) {
  switch (job.algorithm) {
    case gaia::cpu::kWinogradF4: return use(WinogradConvolution<4>(job));
    case gaia::cpu::kWinogradF2: return use(WinogradConvolution<2>(job));
    case gaia::cpu::kIm2col: return use(Im2col(job));
    case gaia::cpu::kPointwise: break;
  }
  return use(Pointwise(job));
}

// How a convolution is cut into work items. A chunk of tiles is a piece of one image, or some images whole: sums do not
// depend on the number of images, or of threads. Where chunks are fewer than threads, each is split by outputs.
struct Cut {
  int64_t tiles, depth, pieces, images, splits;
  int64_t items;           // chunks times splits
  int64_t step_v, step_m;  // floats between the matrices of two positions
  int64_t scratch;         // floats that an item needs
  double operations;
};

template <class Algorithm>
Cut cut(const Algorithm& algorithm, int threads) {
  const Convolution& job = algorithm.job;
  Cut made = {};
  made.tiles = algorithm.tiles(), made.depth = algorithm.depth();
  const int64_t most = algorithm.rows();
  made.pieces = (made.tiles + most - 1) / most;
  if (made.pieces > 1) made.pieces += made.pieces % 2;
  made.images = made.pieces > 1 ? 1 : most / made.tiles;
  if (made.pieces == 1 && job.n < made.images * threads)
    made.images = job.n * made.tiles <= kMostRows ? job.n : (job.n + threads - 1) / threads;
  const int64_t chunks = (job.n + made.images - 1) / made.images * made.pieces;
  const int64_t rows = made.pieces > 1 ? (made.tiles + made.pieces - 1) / made.pieces : made.images * made.tiles;
  // Between the matrices of two positions lies a gap, or equal places of all would share a set of the cache.
  made.step_v = rows * made.depth + kAliasGap, made.step_m = rows * job.k + kAliasGap;
  made.scratch = Algorithm::kPositions * (made.step_v + made.step_m);
  made.operations = 2.0 * static_cast<double>((Algorithm::kPositions * made.depth + 1) * job.n * made.tiles * job.k);
  const int64_t parts = (job.k / kNr + kPanels - 1) / kPanels;
  made.splits = chunks >= threads || made.operations < kUnsplitOperations ? 1 : threads < parts ? threads : parts;
  made.items = chunks * made.splits;
  return made;
}

// Runs one item; the sums of piece p of an image go to totals + image * pitch + p * k.
template <class Algorithm>
void run(const Algorithm& algorithm, const Cut& cut, int64_t item, float* v, float* totals, int64_t pitch) {
  const Convolution& job = algorithm.job;
  const Epilogue epilogue{job};
  const int64_t chunk = item / cut.splits, split = item % cut.splits, piece = chunk % cut.pieces;
  const int64_t first = chunk / cut.pieces * cut.images;
  const int64_t last = first + cut.images < job.n ? first + cut.images : job.n;
  const int64_t from = cut.tiles * piece / cut.pieces, to = cut.tiles * (piece + 1) / cut.pieces, each = to - from;
  const int64_t count = (last - first) * each, panels = job.k / kNr;
  const int64_t begin = panels * split / cut.splits * kNr, end = panels * (split + 1) / cut.splits * kNr;
  float* const m = v + Algorithm::kPositions * cut.step_v;
  if constexpr (Algorithm::kPositions > 0) {
    for (int64_t r = 0; r < count; ++r)
      algorithm.gather(first + r / each, from + r % each, v + r * cut.depth, cut.step_v);
    for (int position = 0; position < Algorithm::kPositions; ++position) {
      multiply_all(count, v + position * cut.step_v, cut.depth, job.packed + position * cut.depth * job.k, begin, end,
                   m + position * cut.step_m, job.k);
    }
  }
  for (int64_t image = first; image < last; ++image) {
    for (int64_t k = begin; k < end; k += kLanes) {
      Vec sum = {};
      for (int64_t tile = 0; tile < each; ++tile) {
        const float* const row = m + ((image - first) * each + tile) * job.k;
        sum += algorithm.finish(epilogue, image, from + tile, row, cut.step_m, k);
      }
      if (job.sums != nullptr) Float32::store(totals + image * pitch + piece * job.k + k, sum);
    }
  }
}

}  // namespace

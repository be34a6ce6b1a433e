// A convolution, cut into work items that threads may take in any order, and the run of one item. Only for executor.h.
#pragma once

#include "cpu/conv/grouped.h"
#include "cpu/conv/indirect_gemm.h"
#include "cpu/conv/pointwise.h"
#include "cpu/conv/winograd.h"

namespace {

template <class Use>
auto with_algorithm(const Convolution& job, Use use) {
  switch (job.algorithm) {
    case gaia::cpu::kWinogradF4: return use(WinogradConvolution<4>(job));
    case gaia::cpu::kWinogradF2: return use(WinogradConvolution<2>(job));
    case gaia::cpu::kIndirectGemm: return use(IndirectGemm(job));
    case gaia::cpu::kGrouped: return use(GroupedConvolution(job));
    case gaia::cpu::kPointwise: break;
  }
  return use(Pointwise(job));
}

// How a convolution is cut into work items: chunks of pieces, and each chunk by outputs.
struct Cut {
  Pieces pieces;
  int64_t chunks, splits;
  int64_t scratch;  // floats that an item needs
  double operations;

  int64_t items() const { return chunks * splits; }
};

template <class Algorithm>
Cut cut(const Algorithm& algorithm, int threads) {
  const Convolution& job = algorithm.job;
  Cut made = {};
  const int64_t tiles = algorithm.tiles(), most = algorithm.rows(), least = algorithm.least_rows();
  int64_t pieces = (tiles + most - 1) / most;
  if (pieces > 1) pieces += pieces % 2;
  if (pieces == 1 && tiles >= 2 * least) pieces = 2;
  made.pieces = {tiles, pieces};
  made.operations = algorithm.operations();
  const int64_t all = job.n * pieces, longest = (tiles + pieces - 1) / pieces + (pieces > 1 ? kLeastMr : 0);
  const bool alone = made.operations < kUnsplitOperations;
  // As few chunks as fit, each reads the weights anew; but as many for each thread.
  made.chunks = (all + most / longest - 1) / (most / longest > 0 ? most / longest : 1);
  if (most < longest) made.chunks = all;
  if (!alone) made.chunks = (made.chunks + threads - 1) / threads * threads;
  if (made.chunks > all) made.chunks = all;
  const int64_t panels = algorithm.panels();
  made.splits = alone || made.chunks >= threads ? 1 : threads < panels ? threads : panels;
  made.scratch = algorithm.scratch((all + made.chunks - 1) / made.chunks * longest);
  return made;
}

// Runs one item; the sums of a piece of an image go to totals + image * pitch + piece * k.
template <class Algorithm>
void run(const Algorithm& algorithm, const Cut& cut, int64_t item, float* scratch, float* totals, int64_t pitch) {
  const Convolution& job = algorithm.job;
  const int64_t index = item / cut.splits, split = item % cut.splits, all = job.n * cut.pieces.count;
  const Chunk chunk = {cut.pieces,
                       all * index / cut.chunks,
                       all * (index + 1) / cut.chunks,
                       algorithm.panels() * split / cut.splits,
                       algorithm.panels() * (split + 1) / cut.splits,
                       job.sums == nullptr ? nullptr : totals,
                       pitch,
                       job.k};
  for (int64_t piece = chunk.first; job.sums != nullptr && piece < chunk.last; ++piece) {
    float* const sums = totals + piece / cut.pieces.count * pitch + piece % cut.pieces.count * job.k;
    for (int64_t k = chunk.begin * kNr; k < chunk.end * kNr; ++k) sums[k] = 0.0f;
  }
  algorithm.run(chunk, scratch);
}

}  // namespace

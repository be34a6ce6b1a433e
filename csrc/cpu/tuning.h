// Every constant of the CPU kernels that was tuned by hand, on AMD Zen 5 unless it says otherwise; none changes what is
// computed beyond rounding. Only for level.cpp.
#pragma once

#include "cpu/caches.h"
#include "cpu/kernels.h"
#include "cpu/simd.h"

namespace {

// Weights are packed in panels of kNr columns, kGroup of them together, kKc inputs at a time.
constexpr int kNr = gaia::cpu::kPackedNr;
constexpr int kGroup = gaia::cpu::kPackedPanels;
constexpr int64_t kKc = gaia::cpu::kPackedKc;
constexpr int kPanelVecs = kNr / kLanes;

// The GEMM micro-kernel makes kMr<V> rows of V vectors of columns in registers, of kPanels panels at most: as many
// accumulators as leave room for a row of weights. Few rows and many columns load less: weights are read as vectors,
// inputs one by one.
#if defined(__AVX512F__)
constexpr int kPanels = 4;
template <int V>
constexpr int kMr = V == 4   ? 6
                    : V == 3 ? 8
                    : V == 2 ? 12
                             : 14;
#elif defined(__AVX2__)
constexpr int kPanels = 1;
template <int V>
constexpr int kMr = 6;
#elif defined(__aarch64__)
constexpr int kPanels = 1;
template <int V>
constexpr int kMr = 6;
#else
constexpr int kPanels = 1;
template <int V>
constexpr int kMr = 3;
#endif
// Inputs that it takes at once: as many as there are registers for their weights.
template <int V>
constexpr int kInputsAtOnce = kLanes < 16 ? 1
                              : V == 1    ? 4
                              : V == 2    ? 2
                                          : 1;
constexpr int kLeastMr = kMr<kPanels * kPanelVecs>;

// How near the next panels are kept: in the second-level cache, since four of them fill the first. Kept in the first
// alone (0), Intel's Ice Lake fetches weights again for every chunk; kept in all (3), Zen 5 takes up to a fifth longer
// where weights come from memory.
constexpr int kPanelLocality = 2;

// Inputs of a product's last part up to which its outputs are fetched before it is made: that takes about as long.
constexpr int64_t kShallow = 64;

// Matrices of equal places in all sets of a cache would evict each other: so many floats lie between them.
constexpr int64_t kAliasGap = 16;

// Rows of a chunk, of which inputs and products should fit into the second-level cache beside what else is read.
constexpr int64_t kLeastRows = 24, kMostRows = 96;

// Squares of outputs of which each thread gets some, where an image has twice as many.
constexpr int64_t kLeastSquares = 8;

inline int64_t rows_in_cache(int64_t floats_per_row) {
  const int64_t most = gaia::cpu::l2_bytes() / 8 * 7 / 4 / floats_per_row;
  return most < kLeastRows ? kLeastRows : most > kMostRows ? kMostRows : most;
}

// Floats that a work item without a product goes over.
constexpr int64_t kPointwiseFloats = 16 * 1024;

// Operations below which a work item is not shared out, and below which waking other threads costs more than it saves.
constexpr double kUnsplitOperations = 5e5;
constexpr double kSerialOperations = 12e6;

// Looks at a wave that other threads are still at, before the processor is offered to others.
constexpr int kSpins = 4 * 1024;

// Bytes that a reduction moves, below which waking the other threads costs more than they save: about 100 us where they
// sleep (OMP_WAIT_POLICY=PASSIVE), in which one thread moves 3 MB.
constexpr int64_t kParallelBytes = 8 << 20;

// Elements that channel_moments fetches ahead: small maps are read faster than the hardware looks ahead.
constexpr int64_t kPrefetchElements = 1024;

}  // namespace

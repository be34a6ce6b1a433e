// The CUDA implementations. Everything is enqueued on the caller's stream; nothing waits, allocates or copies, so all
// of it works while a CUDA graph is being captured.
#pragma once

#include <string>
#include <vector>

#include "maps.h"

namespace gaia::cuda {

enum class Layout { kRows = 0, kChannels = 1, kStrided = 2, kPieces = 3 };

// How the maps are cut, as gaia_fast/ops/tiling.py decides: `vector` elements are loaded at once (16 bytes of them, or
// one), a program takes `chunk` positions of a channel, and `splits` programs share a channel. Where there are several,
// they write to `partial`, (splits, moments, n, k), and draw `tickets`, zeros, which are zeros again afterwards: at
// most n * k of them. Of kRows, a program takes `piece` whole channels as one row, read 16 bytes at a time, where
// `piece` is not 0: that is kPieces.
struct Tiling {
  Layout layout;
  int vector;
  int block_k;
  int64_t chunk;
  int64_t splits;
  int piece;
  float* partial;
  unsigned* tickets;
};

// A CUDA stream, as an address.
using Stream = void*;

// Each returns the error of its launch, empty if there is none. The functions mean what those of cpu/kernels.h do.
std::string channel_moments(const gaia_map& g, const gaia_moments& out, const Tiling& tiling, int device,
                            Stream stream);
std::string relu_backward_moments(const gaia_map& g, const gaia_map* y, const float* scale, const gaia_map& grad_in,
                                  const gaia_moments& out, const Tiling& tiling, int device, Stream stream);
std::string relu_forward_count(const gaia_map& x, const gaia_map* residual, const float* scale, const float* shift,
                               const gaia_map& y, const gaia_moments& out, const Tiling& tiling, int device,
                               Stream stream);
std::string frobenius(const gaia_packed& packed, int device, Stream stream);

// The counts of maps' active units, whether windows of the maps hold some, and the norms of the counts, in one launch.
// An element is active where its bits, as an unsigned number, are from 1 to `limit`: positive, and below what the units
// saturate at.
struct CountedMap {
  gaia_map map;
  unsigned limit;
};
// Counts that come from elsewhere: element (n, k) lies at n * stride_n + k * stride_k.
struct GivenCounts {
  const float* data;
  int64_t k, stride_n, stride_k;
};
// The positions begin, begin + step, ... of both axes of a map.
struct Window {
  int64_t map, begin, step;
};
struct CountAndScore {
  std::vector<CountedMap> maps;
  std::vector<GivenCounts> sums;
  std::vector<int64_t> layers;  // m of maps, or maps + s of sums
  std::vector<double> inverse_area;
  std::vector<Window> windows;
  gaia_dtype dtype;
  int64_t n;
  double p;
  int* scratch;  // zeros: for each image `scratch_size` numbers; zeros again afterwards
  int64_t scratch_size;
  float* packed;  // N rows of the layers' counts
  float* live;    // N rows of the windows
  float* score;   // N of them
};
std::string count_and_score(const CountAndScore& problem, int device, Stream stream);

// How many of each a launch takes.
struct CountAndScoreLimits {
  int maps, sums, layers, windows;
};
CountAndScoreLimits count_and_score_limits();

// Why no kernel can be launched on a device; empty if one can.
std::string obstacle(int device);

// What was built: "sm_80 sm_90 ..." or "emulated".
const char* build();

}  // namespace gaia::cuda

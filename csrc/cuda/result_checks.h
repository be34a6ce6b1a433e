// What the checks around a program take; see result_checks.cu.
#pragma once

#include "kernels.h"

namespace gaia::cuda {

// Images that are copied, in parts of `part` elements, one after the other of each image.
struct ImageCopy {
  gaia_map x;
  void* out;        // (N, K, H, W), contiguous
  uint8_t* finite;  // (N, parts): 1 where a part of an image is finite, else 0
  int64_t part, parts;
  bool whole;  // images without gaps, read 16 bytes at a time
};
std::string copy_and_check(const ImageCopy& copy, int device, Stream stream);

// (N, columns) of any of the types.
struct Matrix {
  const void* data;
  gaia_dtype dtype;
  int64_t columns, stride_n, stride_column;
};

constexpr int kMostColumns = 6;  // scores, or output components

struct ResultChecks {
  int64_t n;
  Matrix logits;                    // to be finite
  Matrix preconditions;             // to be positive
  Matrix scores[kMostColumns];      // of one column, to be finite
  Matrix components[kMostColumns];  // of one column, to be positive, where the logits are further apart than rounding
  int score_count, component_count;
  double rounding;
  const uint8_t* finite;  // (N, finite_count), to be 1
  int64_t finite_count, finite_stride;
  const int64_t* pieces;  // (piece_count, 3): address, size, and where it lies in `expected`; to hold the same
  int64_t piece_count;
  const uint8_t* expected;
  uint8_t* answers;  // (N,): 1 where an image's results hold, else 0
  int64_t* counts;   // 0, the launches so far, and those with an answer of 0 or other memory than expected; or null
  int64_t* told;     // the latter two the other way round, in memory that the host reads
};
std::string check_results(const ResultChecks& checks, int device, Stream stream);

}  // namespace gaia::cuda

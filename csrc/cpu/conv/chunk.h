// What one work item makes of a convolution. Only for level.cpp.
#pragma once

#include "cpu/conv/epilogue.h"
#include "cpu/tuning.h"

namespace {

// The tiles of an image (output positions, or squares of them), in pieces: sums are made of a piece each, so that they
// depend neither on the number of images nor on that of threads.
struct Pieces {
  int64_t tiles, count;
  int64_t begin(int64_t piece) const { return piece == count ? tiles : tiles * piece / count / kLeastMr * kLeastMr; }
};

// Pieces `first` to `last`, numbered through all images, and panels `begin` to `end`. The sums of a piece lie at
// totals + image * pitch + piece * k, and are zero at the beginning; without sums, totals is null.
struct Chunk {
  Pieces pieces;
  int64_t first, last, begin, end;
  float* totals;
  int64_t pitch, k;

  int64_t row(int64_t piece) const { return piece / pieces.count * pieces.tiles + pieces.begin(piece % pieces.count); }
  int64_t rows() const { return row(last) - row(first); }

  // Calls use(image, first tile, end, sums) for each piece.
  template <class Use>
  void each_piece(Use use) const {
    for (int64_t piece = first; piece < last; ++piece) {
      const int64_t image = piece / pieces.count, own = piece % pieces.count;
      float* const sums = totals == nullptr ? nullptr : totals + image * pitch + own * k;
      use(image, pieces.begin(own), pieces.begin(own + 1), sums);
    }
  }

  // Calls use(image, tile, sums) for each row.
  template <class Use>
  void each_row(Use use) const {
    each_piece([&](int64_t image, int64_t from, int64_t to, float* sums) {
      for (int64_t tile = from; tile < to; ++tile) use(image, tile, sums);
    });
  }

  // Calls use(panels of the group, the chunk's first of them, and last, number of the group's first panel) for each
  // group of `panels` that the chunk has part of.
  template <class Use>
  void each_group(int64_t panels, Use use) const {
    for (int64_t p = begin; p < end;) {
      const int64_t group = p / kGroup * kGroup, all = panels - group < kGroup ? panels - group : kGroup;
      const int64_t stop = end - group < all ? end - group : all;
      use(all, p - group, stop, group);
      p = group + stop;
    }
  }
};

}  // namespace

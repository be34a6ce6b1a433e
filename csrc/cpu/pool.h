// Max-pooling and mean-pooling. Only for level.cpp.
#pragma once

#include "cpu/positional_popcount.h"
#include "cpu/tuning.h"

namespace {

using gaia::cpu::Pool;
using gaia::cpu::Windows;

// An item is a panel of an image.
class Pooling {
 public:
  explicit Pooling(const Pool& job) : job_(job), geometry_(job.windows) {}

  int64_t items() const { return geometry_.n * (geometry_.k / kNr); }
  // The positions that won a window, as bits.
  int64_t scratch() const { return job_.counts == nullptr ? 0 : (geometry_.h * geometry_.w + 1) / 2; }
  double operations() const {
    return static_cast<double>(geometry_.n * geometry_.out_h * geometry_.out_w) *
           static_cast<double>(geometry_.kernel_h * geometry_.kernel_w * geometry_.k);
  }

  void run(int64_t item, float* scratch) const {
    const int64_t panels = geometry_.k / kNr, image = item / panels, panel = item % panels;
    uint16_t* const won = reinterpret_cast<uint16_t*>(scratch);
    if (job_.counts != nullptr) __builtin_memset(won, 0, static_cast<size_t>(geometry_.h * geometry_.w) * sizeof(*won));
    for (int64_t i = 0; i < geometry_.out_h; ++i) {
      for (int64_t j = 0; j < geometry_.out_w; ++j) {
        for (int v = 0; v < kPanelVecs; ++v) {
          if (job_.kind == gaia::cpu::kMean) {
            mean(image, i, j, panel * kNr + v * kLanes);
          } else {
            maximum(image, panel, v, i, j, won);
          }
        }
      }
    }
    if (job_.counts != nullptr) count(image, panel, won);
  }

 private:
  // The part of a window that is inside of the map: taps from `begin` to `end`.
  struct Span {
    int64_t first, begin, end;
    Span(int64_t out, int64_t stride, int64_t pad, int64_t dilation, int64_t kernel, int64_t size)
        : first(out * stride - pad),
          begin(first < 0 ? (-first + dilation - 1) / dilation : 0),
          end((size - first + dilation - 1) / dilation) {
      if (end > kernel) end = kernel;
    }
  };
  Span down(int64_t i) const {
    return {i, geometry_.stride_h, geometry_.pad_h, geometry_.dilation_h, geometry_.kernel_h, geometry_.h};
  }
  Span across(int64_t j) const {
    return {j, geometry_.stride_w, geometry_.pad_w, geometry_.dilation_w, geometry_.kernel_w, geometry_.w};
  }

  const float* input(int64_t image, int64_t row, int64_t column, int64_t k) const {
    return job_.x.data + ((image * geometry_.h + row) * geometry_.w + column) * job_.x.pitch + k;
  }
  void write(int64_t image, int64_t i, int64_t j, int64_t k, Vec y) const {
    if (job_.y.data == nullptr) return;
    Float32::store(job_.y.data + ((image * geometry_.out_h + i) * geometry_.out_w + j) * job_.y.pitch + k, y);
  }

  // A row of taps is summed by itself: one chain of thousands of additions would round far more.
  void mean(int64_t image, int64_t i, int64_t j, int64_t k) const {
    const Span rows = down(i), columns = across(j);
    Vec sum = {};
    for (int64_t a = rows.begin; a < rows.end; ++a) {
      Vec part = {};
      for (int64_t b = columns.begin; b < columns.end; ++b)
        part += Float32::load(
            input(image, rows.first + a * geometry_.dilation_h, columns.first + b * geometry_.dilation_w, k));
      sum += part;
    }
    const int64_t inside = (rows.end - rows.begin) * (columns.end - columns.begin);
    write(image, i, j, k, sum / spread(static_cast<float>(job_.divisor > 0 ? job_.divisor : inside)));
  }

  // The first maximum of a window wins, and a NaN any.
  void maximum(int64_t image, int64_t panel, int v, int64_t i, int64_t j, uint16_t* won) const {
    const Span rows = down(i), columns = across(j);
    const int64_t k = panel * kNr + v * kLanes;
    const bool whole = rows.end - rows.begin == geometry_.kernel_h && columns.end - columns.begin == geometry_.kernel_w;
    Vec best = spread(job_.pad_zeros && !whole ? 0.0f : -__builtin_inff());
    IntVec winner = IntVec{} - 1;
    for (int64_t a = rows.begin; a < rows.end; ++a) {
      for (int64_t b = columns.begin; b < columns.end; ++b) {
        const Vec x = Float32::load(
            input(image, rows.first + a * geometry_.dilation_h, columns.first + b * geometry_.dilation_w, k));
        const IntVec better = (IntVec)(x > best) | (IntVec)(x != x);
        best = (Vec)(((IntVec)x & better) | ((IntVec)best & ~better));
        const IntVec tap = IntVec{} + static_cast<int32_t>(a * geometry_.kernel_w + b);
        winner = (tap & better) | (winner & ~better);
      }
    }
    write(image, i, j, k, best);
    if (job_.counts == nullptr) return;
    unsigned alive = bits_of(greater(best, Vec{})) << (v * kLanes);
    if (job_.alive != nullptr) {
      const int64_t plane = geometry_.out_h * geometry_.out_w;
      alive &= job_.alive[panel * gaia::cpu::mask_plane(geometry_.n * plane) + image * plane + i * geometry_.out_w + j];
    }
    for (int64_t a = rows.begin; alive != 0 && a < rows.end; ++a) {
      for (int64_t b = columns.begin; b < columns.end; ++b) {
        const LaneMask here = equal(winner, static_cast<int32_t>(a * geometry_.kernel_w + b));
        won[(rows.first + a * geometry_.dilation_h) * geometry_.w + columns.first + b * geometry_.dilation_w] |=
            static_cast<uint16_t>(bits_of(here) << (v * kLanes) & alive);
      }
    }
  }

  void count(int64_t image, int64_t panel, const uint16_t* won) const {
    count_channels(won, geometry_.h * geometry_.w, job_.counts_k - panel * kNr,
                   job_.counts + image * job_.counts_stride + panel * kNr);
  }

  const Pool& job_;
  const Windows& geometry_;
};

}  // namespace

// Masks of maps as bits: of what a window reaches, and how many. Only for level.cpp.
#pragma once

#include "cpu/positional_popcount.h"
#include "cpu/tuning.h"

namespace {

using gaia::cpu::Mask;
using gaia::cpu::MaskCheck;
using gaia::cpu::Windows;

// An item is an image.
class MaskChecking {
 public:
  explicit MaskChecking(const MaskCheck& job) : job_(job) {}

  int64_t items() const { return job_.n; }
  int64_t scratch() const { return (job_.h * job_.w + 1) / 2; }
  double operations() const { return static_cast<double>(job_.n * job_.h * job_.w * (job_.k / kNr)); }

  void run(int64_t image, float* scratch) const {
    const int64_t area = job_.h * job_.w;
    uint16_t* const any = reinterpret_cast<uint16_t*>(scratch);
    __builtin_memset(any, 0, static_cast<size_t>(area) * sizeof(*any));
    for (int64_t panel = 0; panel < job_.k / kNr; ++panel) {
      const uint16_t* const own = job_.mask + panel * gaia::cpu::mask_plane(job_.n * area) + image * area;
      for (int64_t at = 0; at < area; ++at) any[at] = static_cast<uint16_t>(any[at] | own[at]);
    }
    bool every = true;
    for (int64_t i = job_.begin; i < job_.h; i += job_.step) {
      for (int64_t j = job_.begin; j < job_.w; j += job_.step) every = every && any[i * job_.w + j] != 0;
    }
    job_.out[image * job_.out_stride] = every ? 1.0f : 0.0f;
  }

 private:
  const MaskCheck& job_;
};

// An item is the panels of an image that a group spreads over.
class Masking {
 public:
  explicit Masking(const Mask& job)
      : job_(job),
        geometry_(job.windows),
        panels_(job.group > kNr ? job.group / kNr : 1),
        above_((job.windows.kernel_h - 1) * job.windows.dilation_h - job.windows.pad_h),
        before_((job.windows.kernel_w - 1) * job.windows.dilation_w - job.windows.pad_w) {}

  int64_t items() const { return geometry_.n * (geometry_.k / kNr / panels_); }
  int64_t scratch() const {
    const int64_t reach = is_shift() ? spread_words() + margin() + area() + margin() + 3 * kWords : geometry_.out_w;
    return (area() + kWords + out_area() + reach + 1) / 2;
  }
  double operations() const { return static_cast<double>(geometry_.n * area() * geometry_.k); }

  void run(int64_t item, float* scratch) const {
    const int64_t groups = geometry_.k / kNr / panels_, image = item / groups, first = item % groups * panels_;
    uint16_t* const mask = reinterpret_cast<uint16_t*>(scratch);
    uint16_t* const outer = mask + area() + kWords;
    for (int64_t panel = first; panel < first + panels_; ++panel) {
      if (job_.outer != nullptr) {
        const bool alone = job_.group == 1;
        if (!alone) group_bits(image, first, panel, outer);
        const uint16_t* const windows = alone ? job_.outer + plane(panel, image, out_area()) : outer;
        is_shift() ? reach_by_shifts(windows, mask, outer + out_area()) : reach(windows, mask, outer + out_area());
      }
      combine(image, panel, mask);
      if (job_.out != nullptr) {
        __builtin_memcpy(job_.out + plane(panel, image, area()), mask, static_cast<size_t>(area()) * sizeof(*mask));
      }
      if (job_.counts != nullptr) count(image, panel, mask);
    }
  }

 private:
  int64_t area() const { return geometry_.h * geometry_.w; }
  int64_t out_area() const { return geometry_.out_h * geometry_.out_w; }
  int64_t plane(int64_t panel, int64_t image, int64_t size) const {
    return panel * gaia::cpu::mask_plane(geometry_.n * size) + image * size;
  }

  // For each window whether there is a bit in its group, as a bit for each channel of it.
  void group_bits(int64_t image, int64_t first, int64_t panel, uint16_t* bits) const {
    if (job_.group <= kNr) {
      const uint16_t* const own = job_.outer + plane(panel, image, out_area());
      const unsigned group = static_cast<unsigned>(job_.group), whole = (1u << group) - 1u;
      const unsigned lowest = 0xffffu / whole;
      for (int64_t at = 0; at < out_area(); ++at) {
        unsigned any = own[at];
        for (unsigned shift = 1; shift < group; shift *= 2) any |= any >> shift;
        bits[at] = static_cast<uint16_t>((any & lowest) * whole);
      }
      return;
    }
    for (int64_t at = 0; at < out_area(); ++at) bits[at] = 0;
    for (int64_t p = first; p < first + panels_; ++p) {
      const uint16_t* const own = job_.outer + plane(p, image, out_area());
      for (int64_t at = 0; at < out_area(); ++at)
        bits[at] = static_cast<uint16_t>(bits[at] | (own[at] != 0 ? 0xffff : 0));
    }
  }

  // Whether the windows' bits can be spread over a map of x's size, window (i, j) at position (i, j) times the stride:
  // what they reach is that map or-ed with itself, shifted.
  bool is_shift() const {
    const auto axis = [](int64_t size, int64_t out, int64_t stride, int64_t pad, int64_t opposite) {
      return pad >= 0 && opposite >= 0 && pad + opposite < size && (out - 1) * stride < size;
    };
    return axis(geometry_.h, geometry_.out_h, geometry_.stride_h, geometry_.pad_h, above_) &&
           axis(geometry_.w, geometry_.out_w, geometry_.stride_w, geometry_.pad_w, before_);
  }
  int64_t margin() const { return before_ + geometry_.pad_w; }
  int64_t spread_words() const { return (above_ + geometry_.h + geometry_.pad_h) * geometry_.w; }

  // to[i] = from[i] | from[i - step] | ... of so many; words behind the last are written as well, less than a vector.
  static void shift(const uint16_t* from, int64_t count, int64_t step, uint16_t* to, int64_t size) {
    for (int64_t i = 0; i < size; i += kWords) {
      WordVec any = load_unaligned<WordVec>(from + i);
      for (int64_t t = 1; t < count; ++t) any |= load_unaligned<WordVec>(from + i - t * step);
      __builtin_memcpy(to + i, &any, sizeof(any));
    }
  }

  void reach_by_shifts(const uint16_t* outer, uint16_t* mask, uint16_t* spare) const {
    const int64_t w = geometry_.w, dilation = geometry_.dilation_w;
    __builtin_memset(spare, 0, static_cast<size_t>(spread_words() + kWords) * sizeof(*spare));
    uint16_t* const spread = spare + above_ * w;
    for (int64_t i = 0; i < geometry_.out_h; ++i) {
      uint16_t* const to = spread + i * geometry_.stride_h * w;
      const uint16_t* const from = outer + i * geometry_.out_w;
      if (geometry_.stride_w == 1) {
        __builtin_memcpy(to, from, static_cast<size_t>(geometry_.out_w) * sizeof(*to));
      } else {
        for (int64_t j = 0; j < geometry_.out_w; ++j) to[j * geometry_.stride_w] = from[j];
      }
    }
    uint16_t* const columns = spare + spread_words() + kWords + before_;
    for (int64_t j = 0; j < before_; ++j) columns[j - before_] = 0;
    shift(spread + geometry_.pad_h * w, geometry_.kernel_h, geometry_.dilation_h * w, columns, area());
    for (int64_t j = 0; j < geometry_.pad_w; ++j) columns[area() + j] = 0;
    shift(columns + geometry_.pad_w, geometry_.kernel_w, dilation, mask, area());
    // Where a shift came from another row.
    const auto exact = [&](int64_t row, int64_t j) {
      unsigned any = 0;
      for (int64_t t = 0; t < geometry_.kernel_w; ++t) {
        const int64_t from = j + geometry_.pad_w - t * dilation;
        if (from >= 0 && from < w) any |= columns[row + from];
      }
      mask[row + j] = static_cast<uint16_t>(any);
    };
    for (int64_t row = 0; row < area(); row += w) {
      for (int64_t j = 0; j < before_; ++j) exact(row, j);
      for (int64_t j = w - geometry_.pad_w; j < w; ++j) exact(row, j);
    }
  }

  // The positions that a window with a bit looks at: row by row the windows' rows that look at it, then the columns.
  void reach(const uint16_t* outer, uint16_t* mask, uint16_t* row) const {
    for (int64_t i = 0; i < geometry_.h; ++i) {
      bool any = false;
      for (int64_t a = 0; a < geometry_.kernel_h; ++a) {
        const int64_t from = i + geometry_.pad_h - a * geometry_.dilation_h, o = from / geometry_.stride_h;
        if (from < 0 || from % geometry_.stride_h != 0 || o >= geometry_.out_h) continue;
        const uint16_t* const own = outer + o * geometry_.out_w;
        for (int64_t j = 0; j < geometry_.out_w; ++j) row[j] = static_cast<uint16_t>(any ? row[j] | own[j] : own[j]);
        any = true;
      }
      uint16_t* const to = mask + i * geometry_.w;
      __builtin_memset(to, 0, static_cast<size_t>(geometry_.w) * sizeof(*to));
      for (int64_t b = 0; any && b < geometry_.kernel_w; ++b) {
        if (geometry_.stride_w == 1) {
          reach_columns<1>(row, to, b * geometry_.dilation_w - geometry_.pad_w);
        } else if (geometry_.stride_w == 2) {
          reach_columns<2>(row, to, b * geometry_.dilation_w - geometry_.pad_w);
        } else {
          reach_columns<0>(row, to, b * geometry_.dilation_w - geometry_.pad_w);
        }
      }
    }
  }

  template <int S>
  void reach_columns(const uint16_t* row, uint16_t* to, int64_t left) const {
    const int64_t stride = S > 0 ? S : geometry_.stride_w;
    const int64_t begin = left < 0 ? (-left + stride - 1) / stride : 0;
    const int64_t inside = (geometry_.w - left + stride - 1) / stride;
    const int64_t end = inside < geometry_.out_w ? inside : geometry_.out_w;
    for (int64_t j = begin; j < end; ++j) to[left + j * stride] = static_cast<uint16_t>(to[left + j * stride] | row[j]);
  }

  void combine(int64_t image, int64_t panel, uint16_t* mask) const {
    if (job_.inner == nullptr) return;
    const uint16_t* const inner = job_.inner + plane(panel, image, area());
    if (job_.outer == nullptr) {
      __builtin_memcpy(mask, inner, static_cast<size_t>(area()) * sizeof(*mask));
    } else if (job_.either) {
      for (int64_t at = 0; at < area(); ++at) mask[at] = static_cast<uint16_t>(mask[at] | inner[at]);
    } else {
      for (int64_t at = 0; at < area(); ++at) mask[at] = static_cast<uint16_t>(mask[at] & inner[at]);
    }
  }

  void count(int64_t image, int64_t panel, const uint16_t* mask) const {
    count_channels(mask, area(), job_.counts_k - panel * kNr, job_.counts + image * job_.counts_stride + panel * kNr);
  }

  const Mask& job_;
  const Windows& geometry_;
  int64_t panels_;
  int64_t above_, before_;  // rows and columns by which the spread map is shifted down, and to the right
};

}  // namespace

// A convolution in groups as wide in as out, the depthwise one among them: each vector of outputs is made of the inputs
// of its own lanes' groups. Only for level.cpp.
#pragma once

#include "cpu/conv/chunk.h"

namespace {

// Whose inputs a lane of outputs takes: its own; one of its group's, within the vector; the same for all lanes.
enum Lanes { kOwn, kWithin, kAll };

class GroupedConvolution {
 public:
  const Convolution& job;

  explicit GroupedConvolution(const Convolution& job) : job(job) {}
  int64_t tiles() const { return job.out_h * job.out_w; }
  int64_t panels() const { return job.k / kNr; }
  double operations() const {
    return 2.0 * static_cast<double>((taps() * job.group + 1) * job.n * tiles()) * static_cast<double>(job.k);
  }
  int64_t rows() const { return 1 + kPointwiseFloats / job.k; }
  int64_t least_rows() const { return rows(); }
  int64_t scratch(int64_t) const { return 0; }

  void run(const Chunk& chunk, float*) const {
    chunk.each_piece([&](int64_t image, int64_t from, int64_t to, float* sums) {
      for (int64_t tile = from; tile < to;) {
        const int64_t i = tile / job.out_w, j = tile % job.out_w;
        const int64_t left = job.out_w - j < to - tile ? job.out_w - j : to - tile;
        const int64_t count = left < kAcross ? left : kAcross;
        columns(chunk, static_cast<int>(count), image, i, j, sums);
        tile += count;
      }
    });
  }

 private:
  // Outputs side by side that are made at once: enough to hide a multiply-add's latency.
  static constexpr int kAcross = kLanes == 16 ? 8 : 4;

  int64_t taps() const { return job.kernel_h * job.kernel_w; }

  template <int P = kAcross>
  void columns(const Chunk& chunk, int count, int64_t image, int64_t i, int64_t j, float* sums) const {
    if constexpr (P > 1) {
      if (count < P) return columns<P - 1>(chunk, count, image, i, j, sums);
    }
    Output out[P];
    for (int p = 0; p < P; ++p) {
      out[p].position = (image * job.y_h + job.begin_h + i * job.step_h) * job.y_w + job.begin_w + (j + p) * job.step_w;
      out[p].sums = sums;
    }
    for (int64_t k = chunk.begin * kNr; k < chunk.end * kNr; k += kLanes) {
      if (job.group == 1) {
        outputs<P, kOwn>(image, i, j, k, out);
      } else if (job.group <= kLanes) {
        outputs<P, kWithin>(image, i, j, k, out);
      } else {
        outputs<P, kAll>(image, i, j, k, out);
      }
    }
  }

  template <int P, Lanes kind>
  void outputs(int64_t image, int64_t i, int64_t j, int64_t k, const Output* out) const {
    const bool side_by_side = job.dilation_w == 1;
    if (side_by_side && job.kernel_w == 3 && job.stride_w == 1) return block<P, kind, 3, 1>(image, i, j, k, out);
    if (side_by_side && job.kernel_w == 3 && job.stride_w == 2) return block<P, kind, 3, 2>(image, i, j, k, out);
    if (side_by_side && job.kernel_w == 5 && job.stride_w == 1) return block<P, kind, 5, 1>(image, i, j, k, out);
    if (side_by_side && job.kernel_w == 5 && job.stride_w == 2) return block<P, kind, 5, 2>(image, i, j, k, out);
    block<P, kind, 0, 0>(image, i, j, k, out);
  }

  // Taps that lie side by side, W of them in strides of S, share their inputs; W of 0 stands for any taps, one by one.
  template <int P, Lanes kind, int W, int S>
  void block(int64_t image, int64_t i, int64_t j, int64_t k, const Output* out) const {
    if constexpr (kind == kOwn && W > 0) {
      depthwise<P, W, S>(image, i, j, k, out);
    } else {
      Vec z[P][1] = {};
      rows<P, kind, W, S>(image, i, j, k, z);
      finish(job, z, out, k);
    }
  }

  // Each lane by itself. Flattened, so that all stays in registers: through memory it takes twice as long.
  template <int P, int W, int S>
  [[gnu::flatten]] void depthwise(int64_t image, int64_t i, int64_t j, int64_t k, const Output* out) const {
    constexpr int kInputs = (P - 1) * S + W;
    Vec z[P][1];
    each(z, [](Vec, int, int) { return Vec{}; });
    const int64_t top = i * job.stride_h - job.pad_h, left = j * S - job.pad_w;
    const bool inside = left >= 0 && left + kInputs <= job.w;
    const float* weights = job.packed + k / kNr * kNr * taps() + k % kNr;
    for (int64_t tap = 0; tap < job.kernel_h; ++tap, weights += W * kNr) {
      const int64_t row = top + tap * job.dilation_h;
      if (row < 0 || row >= job.h) continue;
      const float* x = job.x.data + ((image * job.h + row) * job.w + left) * job.x.pitch + k;
      Vec in[kInputs];
      if (inside) {
#pragma GCC unroll 32
        for (int n = 0; n < kInputs; ++n, x += job.x.pitch) in[n] = Float32::load(x);
      } else {
#pragma GCC unroll 32
        for (int n = 0; n < kInputs; ++n, x += job.x.pitch)
          in[n] = left + n >= 0 && left + n < job.w ? Float32::load(x) : Vec{};
      }
#pragma GCC unroll 64
      for (int e = 0; e < W * P; ++e) {
        const int t = e / P, p = e % P;
        z[p][0] = fused(in[p * S + t], Float32::load(weights + t * kNr), z[p][0]);
      }
    }
    finish(job, z, out, k);
  }

  // The products with all rows of taps.
  template <int P, Lanes kind, int W, int S>
  void rows(int64_t image, int64_t i, int64_t j, int64_t k, Vec (&z)[P][1]) const {
    const int64_t top = i * job.stride_h - job.pad_h, left = j * job.stride_w - job.pad_w;
    const float* weights = job.packed + k / kNr * kNr * taps() * job.group + k % kNr;
    const int64_t step = job.kernel_w * job.group * kNr;
    for (int64_t tap = 0; tap < job.kernel_h; ++tap, weights += step) {
      const int64_t row = top + tap * job.dilation_h;
      if (row < 0 || row >= job.h) continue;
      const float* const x = job.x.data + (image * job.h + row) * job.w * job.x.pitch;
      Vec part[P] = {};
      if constexpr (W > 0) {
        taps_at_once<P, kind, W, S>(x, left, k, weights, part);
      } else {
        for (int64_t t = 0; t < job.kernel_w; ++t)
          one_tap<P, kind>(x, left + t * job.dilation_w, k, weights + t * job.group * kNr, part);
      }
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) z[p][0] += part[p];
    }
  }

  // One input of each of N columns, `step` apart: lane by lane the one of its group that is the `index`-th.
  template <int N, Lanes kind>
  struct Inputs {
    Vec value[N];
    const float* at[N];

    Inputs(const float* x, int64_t pitch, int64_t width, int64_t column, int64_t step, int64_t k, int64_t group) {
#pragma GCC unroll 32
      for (int n = 0; n < N; ++n) {
        const int64_t c = column + n * step;
        const bool inside = c >= 0 && c < width;
        if constexpr (kind == kAll) {
          at[n] = inside ? x + c * pitch + k / group * group : nullptr;
        } else {
          value[n] = inside ? Float32::load(x + c * pitch + k) : Vec{};
        }
      }
    }
    Vec get(int n, int64_t index, IntVec first) const {
      if constexpr (kind == kOwn) return value[n];
      if constexpr (kind == kWithin) return permute(value[n], first + static_cast<int32_t>(index));
      return at[n] != nullptr ? spread(at[n][index]) : Vec{};
    }
  };

  // The first lane of each lane's group.
  static IntVec first_lanes(int64_t group) {
    IntVec lanes;
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<int32_t>(i / group * group);
    return lanes;
  }

  template <int P, Lanes kind, int W, int S>
  void taps_at_once(const float* x, int64_t left, int64_t k, const float* weights, Vec (&part)[P]) const {
    constexpr int kInputs = (P - 1) * S + W;
    const Inputs<kInputs, kind> inputs(x, job.x.pitch, job.w, left, 1, k, job.group);
    const IntVec first = kind == kWithin ? first_lanes(job.group) : IntVec{};
    const int64_t group = kind == kOwn ? 1 : job.group;
    for (int64_t index = 0; index < group; ++index) {
      Vec in[kInputs];
#pragma GCC unroll 32
      for (int n = 0; n < kInputs; ++n) in[n] = inputs.get(n, index, first);
#pragma GCC unroll 8
      for (int t = 0; t < W; ++t) {
        const Vec w = Float32::load(weights + (t * group + index) * kNr);
#pragma GCC unroll 8
        for (int p = 0; p < P; ++p) part[p] = fused(in[p * S + t], w, part[p]);
      }
    }
  }

  template <int P, Lanes kind>
  void one_tap(const float* x, int64_t left, int64_t k, const float* weights, Vec (&part)[P]) const {
    const Inputs<P, kind> inputs(x, job.x.pitch, job.w, left, job.stride_w, k, job.group);
    const IntVec first = kind == kWithin ? first_lanes(job.group) : IntVec{};
    for (int64_t index = 0; index < job.group; ++index) {
      const Vec w = Float32::load(weights + index * kNr);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) part[p] = fused(inputs.get(p, index, first), w, part[p]);
    }
  }
};

}  // namespace

// The backward pass of ReLU and norm with the moments between the two. Only for level.cpp.
#pragma once

#include "cpu/reduce.h"

namespace {

// A gradient masked by the ReLU's output and written on to grad_in as it passes. The scale is one per run (a row of one
// channel) or one per element (a run over channels).
template <class T, bool kMasked>
struct Masked {
  const typename T::Storage* g;
  const typename T::Storage* y;
  typename T::Storage* grad_in;
  const float* scale;
  bool scale_per_element;

  static Vec select(Vec g, Vec y) { return (Vec)((IntVec)g & ~(IntVec)(y <= 0.0f)); }
  Vec scaled(Vec masked, Vec factors) const { return scale == nullptr ? masked : masked * factors; }

  Vec vector(int64_t i) const {
    Vec masked = T::load(g + i);
    if constexpr (kMasked) masked = select(masked, T::load(y + i));
    Vec factors = {};
    if (scale != nullptr) factors = scale_per_element ? Float32::load(scale + i) : *scale - Vec{};
    T::store(grad_in + i, scaled(masked, factors));
    return masked;
  }
  Vec part(int64_t i, int64_t count) const {
    Vec masked = load_part<T>(g + i, count);
    if constexpr (kMasked) masked = select(masked, load_part<T>(y + i, count));
    Vec factors = {};
    if (scale != nullptr) factors = scale_per_element ? load_part<Float32>(scale + i, count) : *scale - Vec{};
    store_part<T>(grad_in + i, scaled(masked, factors), count);
    return masked;
  }
  float scalar() const {
    float masked = T::widen(*g);
    if constexpr (kMasked) masked = T::widen(*y) <= 0.0f ? 0.0f : masked;
    *grad_in = T::narrow(scale == nullptr ? masked : masked * *scale);
    return masked;
  }
};

template <class T, bool kMasked>
struct MaskedMap {
  static constexpr int64_t kBytes = (kMasked ? 3 : 2) * sizeof(typename T::Storage);
  gaia_map g;
  gaia_map y;
  gaia_map grad_in;
  const float* scale;

  Masked<T, kMasked> run(int64_t n, int64_t k, int64_t h, int64_t w, bool over_channels) const {
    return {at<T>(g, n, k, h, w), kMasked ? at<T>(y, n, k, h, w) : nullptr, at<T>(grad_in, n, k, h, w),
            scale == nullptr ? nullptr : scale + k, over_channels};
  }
};

void relu_backward_moments(const gaia_map& g, const gaia_map* y, const float* scale, const gaia_map& grad_in,
                           const gaia_moments& out, int threads) {
  const gaia_map* const maps[] = {&g, &grad_in, y};
  const Layout layout = common_layout(maps, y == nullptr ? 2 : 3);
  with_type(g.dtype, [&](auto type) {
    using T = decltype(type);
    if (y == nullptr) {
      reduce(MaskedMap<T, false>{g, g, grad_in, scale}, g, layout, out, threads);
    } else {
      reduce(MaskedMap<T, true>{g, *y, grad_in, scale}, g, layout, out, threads);
    }
  });
}

}  // namespace

// Norm, residual add and ReLU with the count of active units. Only for level.cpp.
#pragma once

#include "cpu/reduce.h"

namespace {

// An affine map of x, plus a residual, through a ReLU; written to y as it passes. What is counted is what was written:
// rounding to half precision may make a small value zero.
template <class T>
struct Rectified {
  const typename T::Storage* x;
  const typename T::Storage* residual;
  typename T::Storage* y;
  const float* scale;
  const float* shift;
  bool per_element;

  static Vec rectify(Vec v) { return (Vec)((IntVec)v & ~(IntVec)(v <= 0.0f)); }

  // The parameters of the elements from i on: one of each for the run, or one of each for every element.
  Vec parameters(const float* p, int64_t i, int64_t count) const {
    if (!per_element) return *p - Vec{};
    return count == kLanes ? Float32::load(p + i) : load_part<Float32>(p + i, count);
  }
  Vec affine(Vec v, int64_t i, int64_t count) const {
    if (scale != nullptr) v = v * parameters(scale, i, count);
    if (shift != nullptr) v = v + parameters(shift, i, count);
    return v;
  }
  Vec vector(int64_t i) const {
    Vec v = affine(T::load(x + i), i, kLanes);
    if (residual != nullptr) v = v + T::load(residual + i);
    T::store(y + i, rectify(v));
    return T::load(y + i);
  }
  Vec part(int64_t i, int64_t count) const {
    Vec v = affine(load_part<T>(x + i, count), i, count);
    if (residual != nullptr) v = v + load_part<T>(residual + i, count);
    store_part<T>(y + i, rectify(v), count);
    return load_part<T>(y + i, count);
  }
  float scalar() const {
    float v = T::widen(*x);
    if (scale != nullptr) v = v * *scale;
    if (shift != nullptr) v = v + *shift;
    if (residual != nullptr) v = v + T::widen(*residual);
    *y = T::narrow(v <= 0.0f ? 0.0f : v);
    return T::widen(*y);
  }
};

template <class T>
struct RectifiedMap {
  static constexpr int64_t kBytes = 3 * sizeof(typename T::Storage);
  gaia_map x;
  gaia_map residual;
  gaia_map y;
  const float* scale;
  const float* shift;

  Rectified<T> run(int64_t n, int64_t k, int64_t h, int64_t w, bool over_channels) const {
    return {at<T>(x, n, k, h, w),
            residual.data == nullptr ? nullptr : at<T>(residual, n, k, h, w),
            at<T>(y, n, k, h, w),
            scale == nullptr ? nullptr : scale + k,
            shift == nullptr ? nullptr : shift + k,
            over_channels};
  }
};

void relu_forward_count(const gaia_map& x, const gaia_map* residual, const float* scale, const float* shift,
                        const gaia_map& y, const gaia_moments& out, int threads) {
  const gaia_map* const maps[] = {&x, &y, residual};
  const Layout layout = common_layout(maps, residual == nullptr ? 2 : 3);
  with_type(x.dtype, [&](auto type) {
    using T = decltype(type);
    const gaia_map none = {nullptr, x.dtype, 0, 0, 0, 0, 0, 0, 0, 0};
    reduce(RectifiedMap<T>{x, residual == nullptr ? none : *residual, y, scale, shift}, x, layout, out, threads);
  });
}

}  // namespace

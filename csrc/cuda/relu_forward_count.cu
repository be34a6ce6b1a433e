#include "reduce.h"

namespace gaia::cuda {
namespace {

// An affine map of x, plus a residual, through a ReLU; written to y as it passes. What is counted is what was written:
// rounding to half precision may make a small value zero.
template <class T>
struct Rectified {
  using Type = T;
  static constexpr int kMoments = 1;
  gaia_map x, residual, y;
  const float* scale;
  const float* shift;
  Divider positions;

  template <int V>
  struct Loaded {
    Pack<T, V> x, residual;
  };

  template <Layout L, int V>
  struct Thread {
    Cursor<T, L> x, residual, y;
    bool has_scale, has_shift, has_residual;
    Parameter<L, V> scale, shift;

    Thread() = default;
    __device__ Thread(const Rectified& operand, int64_t n, int64_t k)
        : x(operand.x, n, k),
          residual(operand.residual, n, k),
          y(operand.y, n, k),
          has_scale(operand.scale != nullptr),
          has_shift(operand.shift != nullptr),
          has_residual(operand.residual.data != nullptr),
          scale(operand.scale, operand.positions, k, 1.0f),
          shift(operand.shift, operand.positions, k, 0.0f) {}
    __device__ Loaded<V> load(int h, int w) const {
      Loaded<V> loaded;
      loaded.x = x.template load<V>(h, w);
      if (has_residual) loaded.residual = residual.template load<V>(h, w);
      return loaded;
    }
    __device__ void finish(int h, int w, const Loaded<V>& loaded, float* values) const {
      Pack<T, V> result;
      const auto &factor = scale.at(w), &offset = shift.at(w);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float value = T::widen(loaded.x.element[v]);
        if (has_scale) value = value * factor[v];
        if (has_shift) value = value + offset[v];
        if (has_residual) value = value + T::widen(loaded.residual.element[v]);
        result.element[v] = T::narrow(value <= 0.0f ? 0.0f : value);
        values[v] = T::widen(result.element[v]);
      }
      y.store(h, w, result);
    }
  };
};

}  // namespace

std::string relu_forward_count(const gaia_map& x, const gaia_map* residual, const float* scale, const float* shift,
                               const gaia_map& y, const gaia_moments& out, const Tiling& tiling, int device,
                               Stream stream) {
  gaia_map none = x;
  none.data = nullptr;
  return with_type(x.dtype, [&](auto type) {
    const Rectified<decltype(type)> operand = {
        x, residual != nullptr ? *residual : none, y, scale, shift, Divider(x.h * x.w)};
    return reduce("relu_forward_count", operand, x, out, tiling, device, stream);
  });
}

}  // namespace gaia::cuda

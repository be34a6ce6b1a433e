#include "reduce.h"

namespace gaia::cuda {
namespace {

// A gradient masked by the ReLU's output and written on to grad_in as it passes. No y, no mask.
template <class T>
struct Masked {
  using Type = T;
  static constexpr int kMoments = 3;
  gaia_map g, y, grad_in;
  const float* scale;
  Divider positions;

  template <int V>
  struct Loaded {
    Pack<T, V> g, y;
  };

  template <Layout L, int V>
  struct Thread {
    Cursor<T, L> g, y, grad_in;
    bool masked, scaled;
    Parameter<L, V> scale;

    Thread() = default;
    __device__ Thread(const Masked& operand, int64_t n, int64_t k)
        : g(operand.g, n, k),
          y(operand.y, n, k),
          grad_in(operand.grad_in, n, k),
          masked(operand.y.data != nullptr),
          scaled(operand.scale != nullptr),
          scale(operand.scale, operand.positions, k, 1.0f) {}
    __device__ Loaded<V> load(int h, int w) const {
      Loaded<V> loaded;
      loaded.g = g.template load<V>(h, w);
      if (masked) loaded.y = y.template load<V>(h, w);
      return loaded;
    }
    __device__ void finish(int h, int w, const Loaded<V>& loaded, float* values) const {
      Pack<T, V> result;
      const auto& factor = scale.at(w);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        values[v] = T::widen(loaded.g.element[v]);
        if (masked && T::widen(loaded.y.element[v]) <= 0.0f) values[v] = 0.0f;
        result.element[v] = T::narrow(scaled ? values[v] * factor[v] : values[v]);
      }
      grad_in.store(h, w, result);
    }
  };
};

}  // namespace

std::string relu_backward_moments(const gaia_map& g, const gaia_map* y, const float* scale, const gaia_map& grad_in,
                                  const gaia_moments& out, const Tiling& tiling, int device, Stream stream) {
  gaia_map none = g;
  none.data = nullptr;
  return with_type(g.dtype, [&](auto type) {
    const Masked<decltype(type)> operand = {g, y != nullptr ? *y : none, grad_in, scale, Divider(g.h * g.w)};
    return reduce("relu_backward_moments", operand, g, out, tiling, device, stream);
  });
}

}  // namespace gaia::cuda

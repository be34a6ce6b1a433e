#include "reduce.h"

namespace gaia::cuda {
namespace {

// Reads a gradient as it is.
template <class T>
struct Plain {
  using Type = T;
  static constexpr int kMoments = 3;
  gaia_map g;

  template <int V>
  struct Loaded {
    Pack<T, V> g;
  };

  template <Layout L, int V>
  struct Thread {
    Cursor<T, L> g;

    Thread() = default;
    __device__ Thread(const Plain& operand, int64_t n, int64_t k) : g(operand.g, n, k) {}
    __device__ Loaded<V> load(int h, int w) const { return {g.template load<V>(h, w)}; }
    __device__ void finish(int, int, const Loaded<V>& loaded, float* values) const {
#pragma unroll
      for (int v = 0; v < V; ++v) values[v] = T::widen(loaded.g.element[v]);
    }
  };
};

}  // namespace

std::string channel_moments(const gaia_map& g, const gaia_moments& out, const Tiling& tiling, int device,
                            Stream stream) {
  return with_type(g.dtype, [&](auto type) {
    return reduce("channel_moments", Plain<decltype(type)>{g}, g, out, tiling, device, stream);
  });
}

}  // namespace gaia::cuda

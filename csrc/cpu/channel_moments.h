// Reads a gradient as it is. Only for level.cpp.
#pragma once

#include "cpu/reduce.h"

namespace {

template <class T>
struct Plain {
  const typename T::Storage* g;

  Vec vector(int64_t i) const {
    // Beyond the end a prefetch does nothing.
    __builtin_prefetch(g + i + kPrefetchElements);
    return T::load(g + i);
  }
  Vec part(int64_t i, int64_t count) const { return load_part<T>(g + i, count); }
  float scalar() const { return T::widen(*g); }
};

template <class T>
struct PlainMap {
  static constexpr int64_t kBytes = sizeof(typename T::Storage);  // moved per element
  gaia_map g;

  Plain<T> run(int64_t n, int64_t k, int64_t h, int64_t w, bool) const { return {at<T>(g, n, k, h, w)}; }
};

void channel_moments(const gaia_map& g, const gaia_moments& out, int threads) {
  with_type(g.dtype, [&](auto type) {
    const gaia_map* const maps[] = {&g};
    reduce(PlainMap<decltype(type)>{g}, g, common_layout(maps, 1), out, threads);
  });
}

}  // namespace

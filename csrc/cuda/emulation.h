// CUDA's words for g++, so that the tests run the kernels of this folder on machines without a GPU: the threads of a
// block are fibres that take turns at every barrier and shuffle. For the tests alone; nothing here is fast.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static
#define __grid_constant__

using std::memcpy;

struct EmulatedIndex {
  unsigned x;
};
inline EmulatedIndex threadIdx, blockIdx;

namespace gaia::cuda::emulation {

constexpr int kMaxThreads = 1024;
constexpr size_t kStack = 96 << 10;  // the arguments of a kernel, at most 32 KB, are on it

struct Fibre {
  ucontext_t context;
  bool ended;
  int barriers;  // passed so far: those of a warp and those of the block in one count, as all threads meet all
};

// One block at a time, on the thread that launches.
struct Block {
  std::vector<Fibre> fibres;
  std::vector<char> stacks;
  ucontext_t scheduler;
  int threads = 0;
  std::function<void()> body;
  uint64_t slots[kMaxThreads];
};
inline Block block;

inline void yield() {
  const unsigned self = threadIdx.x;
  swapcontext(&block.fibres[self].context, &block.scheduler);
  threadIdx.x = self;
}

// Waits until every thread of [first, last) has come as far, or has ended, which CUDA forbids.
inline void barrier(int first, int last) {
  const int mine = ++block.fibres[threadIdx.x].barriers;
  for (;;) {
    bool all = true;
    for (int i = first; i < last; ++i) {
      if (block.fibres[i].ended && block.fibres[i].barriers < mine) std::abort();
      all = all && block.fibres[i].barriers >= mine;
    }
    if (all) return;
    yield();
  }
}

inline void run_fibre() {
  block.body();
  block.fibres[threadIdx.x].ended = true;
  swapcontext(&block.fibres[threadIdx.x].context, &block.scheduler);
}

inline void run_block(int threads) {
  block.threads = threads;
  block.fibres.resize(kMaxThreads);
  block.stacks.resize(kMaxThreads * kStack);
  for (int i = 0; i < threads; ++i) {
    Fibre& fibre = block.fibres[i];
    fibre.ended = false;
    fibre.barriers = 0;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = block.stacks.data() + i * kStack;
    fibre.context.uc_stack.ss_size = kStack;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, run_fibre, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (int i = 0; i < threads; ++i) {
      if (block.fibres[i].ended) continue;
      running = true;
      threadIdx.x = i;
      swapcontext(&block.scheduler, &block.fibres[i].context);
    }
  }
}

}  // namespace gaia::cuda::emulation

inline void __syncthreads() { gaia::cuda::emulation::barrier(0, gaia::cuda::emulation::block.threads); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  using gaia::cuda::emulation::barrier;
  using gaia::cuda::emulation::block;
  if (mask != 0xffffffffu) std::abort();
  const int self = static_cast<int>(threadIdx.x), warp = self / 32 * 32;
  std::memcpy(&block.slots[self], &value, sizeof(T));
  barrier(warp, warp + 32);
  std::memcpy(&value, &block.slots[self ^ distance], sizeof(T));
  barrier(warp, warp + 32);
  return value;
}

// The blocks run one after the other, and the threads of a block take turns: nothing is ever in between.
template <class T>
T atomicAdd(T* at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}
inline unsigned atomicOr(unsigned* at, unsigned bits) {
  const unsigned before = *at;
  *at = before | bits;
  return before;
}
inline void __threadfence() {}
inline void __threadfence_system() {}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  using gaia::cuda::emulation::barrier;
  using gaia::cuda::emulation::block;
  if (mask != 0xffffffffu) std::abort();
  const int self = static_cast<int>(threadIdx.x), warp = self / 32 * 32;
  block.slots[self] = predicate != 0;
  barrier(warp, warp + 32);
  unsigned bits = 0;
  for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(block.slots[warp + lane]) << lane;
  barrier(warp, warp + 32);
  return bits;
}

// What other blocks wrote, past the first cache: there is none here.
template <class T>
T __ldcg(const T* at) {
  return *at;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

namespace gaia::cuda {

struct Grid;

inline void store_quad(void* to, const unsigned (&quad)[4]) {
  std::memcpy(__builtin_assume_aligned(to, 16), quad, sizeof(quad));
}

template <class G, class... Args>
std::string launch(const char*, void (*kernel)(Args...), G grid, int, Stream, Args... args) {
#if defined(__SSE2__)
  const unsigned mode = _mm_getcsr();
  _mm_setcsr(0x1f80);  // the caller may flush subnormals; a GPU does not
#endif
  emulation::block.body = [&] { kernel(args...); };
  for (int64_t i = 0; i < grid.blocks; ++i) {
    blockIdx.x = static_cast<unsigned>(i);
    emulation::run_block(grid.threads);
  }
#if defined(__SSE2__)
  _mm_setcsr(mode);
#endif
  return {};
}

}  // namespace gaia::cuda

// Steps in waves, worked through by one team of threads: the items of a wave are claimed one by one, and the next
// wave begins when all are done. Nobody waits for a thread that is not there yet: waking one takes longer than many a
// wave. A thread begins with its own share of each step's items, which is the same part of the map in convolutions that
// follow each other: much of what it reads it wrote itself. Then it takes from the others'. Only for level.cpp.
#pragma once

#include <omp.h>
#include <sched.h>
#include <stdlib.h>

#include "cpu/channels_last.h"
#include "cpu/conv/tiling.h"
#include "cpu/group_norm.h"
#include "cpu/mask.h"
#include "cpu/pool.h"
#include "cpu/pooled_gradients.h"
#include "cpu/result_steps.h"

namespace {

using gaia::cpu::HostCallback;
using gaia::cpu::Step;

struct Task {
  Cut cut;
  float* totals;
  int64_t pitch;
  int64_t items;
  bool in_place;
  int64_t pieces;  // of all tasks that make one map together; set for the first of them, and 0 for the others
};

// How many of the items of a thread's share are claimed.
struct Share {
  alignas(64) int64_t claimed;
};

struct Wave {
  alignas(64) int64_t left;  // items
  int64_t begin, end;        // its steps
  bool done;
};

// Grows, and stays with its thread: fresh pages would cost as much as a small convolution.
struct Scratch {
  void* data = nullptr;
  int64_t size = 0;
  void* take(int64_t bytes) {
    if (bytes > size) {
      free(data);
      data = aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64));
      size = data != nullptr ? bytes : 0;
    }
    return data;
  }
  ~Scratch() { free(data); }
};

// Scratch that is its thread's own until it is given back: what runs meanwhile may come here as well.
struct Borrowed {
  explicit Borrowed(Scratch& home) : home_(home) { exchange(); }
  ~Borrowed() {
    if (mine_.size > home_.size) exchange();
  }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  void* take(int64_t bytes) { return mine_.take(bytes); }

 private:
  void exchange() {
    void* const data = home_.data;
    const int64_t size = home_.size;
    home_.data = mine_.data, home_.size = mine_.size;
    mine_.data = data, mine_.size = size;
  }
  Scratch& home_;
  Scratch mine_;
};

inline void cpu_relax() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// What all kinds of steps but convolutions have: items that are what they are, and room that each needs.
template <class Use>
void with_kernel(const Step& step, Use use) {
  switch (step.kind) {
    case gaia::cpu::kChannelsLastStep: return use(ChannelsLastCopy(step.channels_last));
    case gaia::cpu::kPoolStep: return use(Pooling(step.pool));
    case gaia::cpu::kGroupNormStep: return use(GroupNormalisation(step.norm));
    case gaia::cpu::kGateGradientStep: return use(GateGradients(step.gate_gradient));
    case gaia::cpu::kMeanGradientStep: return use(MeanGradients(step.mean_gradient));
    case gaia::cpu::kMaskStep: return use(Masking(step.mask));
    case gaia::cpu::kMaskCheckStep: return use(MaskChecking(step.mask_check));
    case gaia::cpu::kCopyColumnsStep: return use(ColumnsCopy(step.copy_columns));
    case gaia::cpu::kLogitSlopesStep: return use(Slopes(step.logit_slopes));
    case gaia::cpu::kMeanRootStep: return use(RootOfMean(step.mean_root));
    case gaia::cpu::kScoreStep: return use(Scoring(step.score));
    case gaia::cpu::kResultCheckStep: return use(ResultChecking(step.result_check));
    case gaia::cpu::kCheckStep:
    case gaia::cpu::kConvolutionStep: return;
  }
}

const Convolution* summing(const Step& step) {
  const bool sums = step.kind == gaia::cpu::kConvolutionStep && step.convolution.sums != nullptr;
  return sums ? &step.convolution : nullptr;
}

// Cuts the steps of a wave; returns the floats that the sums of their pieces need.
int64_t cut_wave(const Step* steps, Task* tasks, Wave& wave, int threads) {
  int64_t floats = 0;
  for (int64_t s = wave.begin; s < wave.end; ++s) {
    Task& task = tasks[s];
    task = {};
    if (steps[s].kind == gaia::cpu::kCheckStep) {
      task.items = steps[s].active.n;
    } else if (steps[s].kind == gaia::cpu::kConvolutionStep) {
      const Convolution& job = steps[s].convolution;
      task.cut = with_algorithm(job, [&](const auto& algorithm) { return cut(algorithm, threads); });
      task.items = task.cut.items();
    } else {
      with_kernel(steps[s], [&](const auto& kernel) {
        task.items = kernel.items();
        task.cut.scratch = kernel.scratch();
        task.cut.operations = kernel.operations();
      });
    }
    if (const Convolution* const job = summing(steps[s])) {
      int64_t first = s;
      while (first > wave.begin && summing(steps[first - 1]) && steps[first - 1].convolution.sums == job->sums) --first;
      tasks[first].pieces += task.cut.pieces.count;
      floats += task.cut.pieces.count * job->n * job->k;
    }
    wave.left += task.items;
  }
  return floats;
}

// Where the tasks of a wave put the sums of their pieces: in place where there is one, and room for what channels are
// padded by; else in `partial`.
float* place_sums(const Step* steps, Task* tasks, const Wave& wave, float* partial) {
  int64_t before = 0, all = 0;
  for (int64_t s = wave.begin; s < wave.end; ++s) {
    Task& task = tasks[s];
    const Convolution* const job = summing(steps[s]);
    if (job == nullptr) continue;
    if (task.pieces > 0) before = 0, all = task.pieces;
    task.in_place = all == 1 && job->channels == job->k;
    task.totals = task.in_place ? job->sums : partial + before * job->k;
    task.pitch = task.in_place ? job->sums_stride : all * job->k;
    before += task.cut.pieces.count;
    if (before == all && !task.in_place) partial += job->n * all * job->k;
  }
  return partial;
}

void add_pieces(const Step* steps, const Task* tasks, const Wave& wave) {
  for (int64_t s = wave.begin; s < wave.end; ++s) {
    const Task& task = tasks[s];
    const Convolution* const job = summing(steps[s]);
    if (job == nullptr || task.pieces == 0 || task.in_place) continue;
    for (int64_t image = 0; image < job->n; ++image) {
      for (int64_t k = 0; k < job->channels; k += kLanes) {
        Vec sum = {};
        for (int64_t piece = 0; piece < task.pieces; ++piece)
          sum += Float32::load(task.totals + image * task.pitch + piece * job->k + k);
        float* const to = job->sums + image * job->sums_stride + k;
        if (k + kLanes <= job->channels) {
          Float32::store(to, sum);
        } else {
          store_part<Float32>(to, sum, job->channels - k);
        }
      }
    }
  }
}

void run_item(const Step& step, const Task& task, int64_t item, float* scratch) {
  if (step.kind == gaia::cpu::kConvolutionStep) {
    return with_algorithm(step.convolution, [&](const auto& algorithm) {
      run(algorithm, task.cut, item, scratch, task.totals, task.pitch);
    });
  }
  if (step.kind == gaia::cpu::kCheckStep) {
    gaia::cpu::ActiveEverywhere one = step.active;
    one.n = 1, one.y.data += item * one.h * one.w * one.y.pitch, one.out += item * one.out_stride;
    return gaia::cpu::active_everywhere(one);
  }
  with_kernel(step, [&](const auto& kernel) { kernel.run(item, scratch); });
}

void run_wave(const Step* steps, Task* tasks, Wave& wave, Share* shares, int thread, int threads, float* scratch) {
  if (__atomic_load_n(&wave.done, __ATOMIC_ACQUIRE)) return;
  for (int64_t s = wave.begin; s < wave.end; ++s) {
    for (int t = 0; t < threads; ++t) {
      const int owner = (thread + t) % threads;
      const int64_t first = tasks[s].items * owner / threads, count = tasks[s].items * (owner + 1) / threads - first;
      int64_t& claimed = shares[s * threads + owner].claimed;
      while (__atomic_load_n(&claimed, __ATOMIC_RELAXED) < count) {
        const int64_t item = __atomic_fetch_add(&claimed, 1, __ATOMIC_RELAXED);
        if (item >= count) break;
        run_item(steps[s], tasks[s], first + item, scratch);
        if (__atomic_sub_fetch(&wave.left, 1, __ATOMIC_ACQ_REL) == 0) {
          add_pieces(steps, tasks, wave);
          __atomic_store_n(&wave.done, true, __ATOMIC_RELEASE);
        }
      }
    }
  }
  for (int spins = 0; !__atomic_load_n(&wave.done, __ATOMIC_ACQUIRE); ++spins) {
    if (spins < kSpins) {
      cpu_relax();
    } else {
      sched_yield();
    }
  }
}

bool execute(const Step* steps, int64_t count, int threads, const HostCallback& callback) {
  static thread_local Scratch own_plan, own_memory;
  Borrowed plan(own_plan), memory(own_memory);
  const int64_t waves = count > 0 ? steps[count - 1].wave + 1 : 0;
  const size_t sizes[] = {waves * sizeof(Wave), count * threads * sizeof(Share), count * sizeof(Task)};
  char* const room = static_cast<char*>(plan.take(static_cast<int64_t>(sizes[0] + sizes[1] + sizes[2])));
  if (room == nullptr) return false;
  Wave* const all = reinterpret_cast<Wave*>(room);
  Share* const shares = reinterpret_cast<Share*>(room + sizes[0]);
  Task* const tasks = reinterpret_cast<Task*>(room + sizes[0] + sizes[1]);
  int64_t partials = 0, scratch = 0;
  double operations = 0;
  for (int64_t s = 0, i = 0; i < waves; ++i) {
    all[i] = {};
    all[i].begin = s;
    while (s < count && steps[s].wave == i) ++s;
    all[i].end = s;
    partials += cut_wave(steps, tasks, all[i], threads);
  }
  for (int64_t s = 0; s < count; ++s) {
    operations += tasks[s].cut.operations;
    if (tasks[s].cut.scratch > scratch) scratch = tasks[s].cut.scratch;
  }
  scratch = (scratch + kAliasGap - 1) / kAliasGap * kAliasGap + kAliasGap;
  if (operations < kSerialOperations) threads = 1;
  __builtin_memset(shares, 0, count * threads * sizeof(Share));
  float* const floats = static_cast<float*>(memory.take((partials + threads * scratch) * 4));
  if (floats == nullptr) return false;
  float* partial = floats + threads * scratch;
  for (int64_t i = 0; i < waves; ++i) partial = place_sums(steps, tasks, all[i], partial);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    if (thread == 0 && callback.run != nullptr) callback.run(callback.context);
    const FloatMode mode;
    for (int64_t i = 0; i < waves; ++i)
      run_wave(steps, tasks, all[i], shares, thread, threads, floats + thread * scratch);
  }
  return true;
}

}  // namespace

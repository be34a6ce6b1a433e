// Steps in stages, worked through by one team of threads: the items of a stage are claimed one by one, and the next
// stage begins when all are done. Nobody waits for a thread that is not there yet: waking one takes longer than many a
// stage. Only for level.cpp.
#pragma once

#include <omp.h>
#include <sched.h>
#include <stdlib.h>

#include "convolution.h"

namespace {

using gaia::cpu::Meanwhile;
using gaia::cpu::Step;

constexpr double kAlone = 12e6;      // operations below which waking other threads costs more than it saves
constexpr int kPatience = 4 * 1024;  // looks at a stage that others are still at, before the processor is offered

struct Task {
  alignas(64) int64_t claimed;
  Cut cut;
  float* totals;
  int64_t pitch;
  int64_t pieces;  // of all tasks that make one map together; set for the first of them, and 0 for the others
};

struct Stage {
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

inline void breathe() {
#if defined(__SSE2__)
  _mm_pause();
#endif
}

// Cuts the steps of a stage; returns the floats that the sums of their pieces need.
int64_t cut_stage(const Step* steps, Task* tasks, Stage& stage, int threads) {
  int64_t floats = 0;
  for (int64_t s = stage.begin; s < stage.end; ++s) {
    Task& task = tasks[s];
    const Convolution& job = steps[s].convolution;
    task = {};
    if (steps[s].open.out != nullptr) {
      task.cut.items = steps[s].open.n;
    } else {
      task.cut = with_form(job, [&](const auto& form) { return cut(form, threads); });
      int64_t first = s;
      while (job.sums != nullptr && first > stage.begin && steps[first - 1].convolution.sums == job.sums) --first;
      tasks[first].pieces += task.cut.pieces;
      if (job.sums != nullptr) floats += task.cut.pieces * job.n * job.k;
    }
    stage.left += task.cut.items;
  }
  return floats;
}

// Where the tasks of a stage put the sums of their pieces: in place where there is one, else in `partial`.
float* place_sums(const Step* steps, Task* tasks, const Stage& stage, float* partial) {
  int64_t before = 0, all = 0;
  for (int64_t s = stage.begin; s < stage.end; ++s) {
    Task& task = tasks[s];
    const Convolution& job = steps[s].convolution;
    if (steps[s].open.out != nullptr || job.sums == nullptr) continue;
    if (task.pieces > 0) before = 0, all = task.pieces;
    task.totals = all == 1 ? job.sums : partial + before * job.k;
    task.pitch = all == 1 ? job.sums_step : all * job.k;
    before += task.cut.pieces;
    if (before == all && all > 1) partial += job.n * all * job.k;
  }
  return partial;
}

void add_pieces(const Step* steps, const Task* tasks, const Stage& stage) {
  for (int64_t s = stage.begin; s < stage.end; ++s) {
    const Task& task = tasks[s];
    const Convolution& job = steps[s].convolution;
    if (job.sums == nullptr || task.pieces < 2) continue;
    for (int64_t image = 0; image < job.n; ++image) {
      for (int64_t k = 0; k < job.k; k += kLanes) {
        Vec sum = {};
        for (int64_t piece = 0; piece < task.pieces; ++piece)
          sum += Float32::load(task.totals + image * task.pitch + piece * job.k + k);
        Float32::store(job.sums + image * job.sums_step + k, sum);
      }
    }
  }
}

void run_item(const Step& step, const Task& task, int64_t item, float* scratch) {
  if (step.open.out != nullptr) {
    gaia::cpu::OpenEverywhere one = step.open;
    one.n = 1, one.y += item * one.h * one.w * one.k, one.out += item * one.out_step;
    return gaia::cpu::open_everywhere(one);
  }
  with_form(step.convolution, [&](const auto& form) { run(form, task.cut, item, scratch, task.totals, task.pitch); });
}

void run_stage(const Step* steps, Task* tasks, Stage& stage, float* scratch) {
  for (int64_t s = stage.begin; s < stage.end; ++s) {
    int64_t item;
    while ((item = __atomic_fetch_add(&tasks[s].claimed, 1, __ATOMIC_RELAXED)) < tasks[s].cut.items) {
      run_item(steps[s], tasks[s], item, scratch);
      if (__atomic_sub_fetch(&stage.left, 1, __ATOMIC_ACQ_REL) == 0) {
        add_pieces(steps, tasks, stage);
        __atomic_store_n(&stage.done, true, __ATOMIC_RELEASE);
      }
    }
  }
  for (int looks = 0; !__atomic_load_n(&stage.done, __ATOMIC_ACQUIRE); ++looks) {
    if (looks < kPatience) {
      breathe();
    } else {
      sched_yield();
    }
  }
}

bool chain(const Step* steps, int64_t count, int threads, const Meanwhile& meanwhile) {
  static thread_local Scratch own_plan, own_memory;
  Borrowed plan(own_plan), memory(own_memory);
  const int64_t stages = count > 0 ? steps[count - 1].stage + 1 : 0;
  Task* const tasks = static_cast<Task*>(
      plan.take(count * static_cast<int64_t>(sizeof(Task)) + stages * static_cast<int64_t>(sizeof(Stage))));
  if (tasks == nullptr) return false;
  Stage* const all = reinterpret_cast<Stage*>(tasks + count);
  int64_t partials = 0, scratch = 0;
  double operations = 0;
  for (int64_t s = 0, i = 0; i < stages; ++i) {
    all[i] = {};
    all[i].begin = s;
    while (s < count && steps[s].stage == i) ++s;
    all[i].end = s;
    partials += cut_stage(steps, tasks, all[i], threads);
  }
  for (int64_t s = 0; s < count; ++s) {
    operations += tasks[s].cut.operations;
    if (tasks[s].cut.scratch > scratch) scratch = tasks[s].cut.scratch;
  }
  scratch = (scratch + kGap - 1) / kGap * kGap + kGap;
  if (operations < kAlone) threads = 1;
  float* const floats = static_cast<float*>(memory.take((partials + threads * scratch) * 4));
  if (floats == nullptr) return false;
  float* partial = floats + threads * scratch;
  for (int64_t i = 0; i < stages; ++i) partial = place_sums(steps, tasks, all[i], partial);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    if (thread == 0 && meanwhile.run != nullptr) meanwhile.run(meanwhile.context);
    const FloatMode mode;
    for (int64_t i = 0; i < stages; ++i) run_stage(steps, tasks, all[i], floats + thread * scratch);
  }
  return true;
}

}  // namespace

// The Python module gaia_fast._kernels: pointers, sizes and strides in, nothing of torch. Arguments are checked by the
// Python callers in gaia_fast/ops; the interpreter lock is released while a kernel runs.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdlib>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "cpu/kernels.h"
#include "fingerprint.h"
#ifdef GAIA_CUDA
#include "cuda/kernels.h"
#endif

namespace py = pybind11;

namespace {

// (data pointer, (n, k, h, w), strides in elements), as the Python side knows a tensor.
using Sizes = std::array<int64_t, 4>;

gaia_map make_map(uintptr_t data, int dtype, const Sizes& shape, const Sizes& strides) {
  return {reinterpret_cast<void*>(data),
          static_cast<gaia_dtype>(dtype),
          shape[0],
          shape[1],
          shape[2],
          shape[3],
          strides[0],
          strides[1],
          strides[2],
          strides[3]};
}

gaia_moments make_moments(uintptr_t data, int64_t stride_moment, int64_t stride_n) {
  float* const first = reinterpret_cast<float*>(data);
  return {first, first + stride_moment, first + 2 * stride_moment, stride_n};
}

const gaia::cpu::KernelTable* find_level(const std::string& level) {
  std::string supported;
  for (auto table = gaia::cpu::supported_tables(); *table != nullptr; ++table) {
    if (level == (*table)->level) return *table;
    supported += std::string(supported.empty() ? "" : ", ") + (*table)->level;
  }
  throw std::invalid_argument("instruction-set level '" + level + "' does not run here; choose from: " + supported);
}

const gaia::cpu::KernelTable* initial_level() {
  const char* forced = std::getenv("GAIA_FAST_CPU_LEVEL");
  return forced != nullptr && *forced != '\0' ? find_level(forced) : gaia::cpu::supported_tables()[0];
}

const gaia::cpu::KernelTable* active = nullptr;

// A pointer of a chain: an address, with place -1; else so many floats into the array that `run` is given at this
// place.
using Pointer = std::pair<int64_t, int64_t>;

// stage, the pointers and the sizes of gaia::cpu::Convolution in their order and the number of packed weights, tile,
// relu, statistic. With tile -1, of gaia::cpu::OpenEverywhere: its own.
using StepArguments = std::tuple<int64_t, std::vector<Pointer>, std::vector<int64_t>, int, bool, int>;

// Steps on memory that each run names anew; safe to run from several threads.
class Chain {
 public:
  explicit Chain(const std::vector<StepArguments>& steps) : steps_(steps) {
    int64_t last = -1;
    for (const auto& [stage, pointers, sizes, tile, relu, statistic] : steps_) {
      if (pointers.size() != (tile < 0 ? 2 : 10) || sizes.size() != (tile < 0 ? 9 : 23))
        throw std::invalid_argument("a step of another build of the extension");
      if (stage < 0) throw std::invalid_argument("a step of stage " + std::to_string(stage) + "; the first is 0");
      // A stage without steps is never done: the threads would wait for it for ever.
      if (stage != last && stage != last + 1)
        throw std::invalid_argument("a step of stage " + std::to_string(stage) + " behind one of stage " +
                                    std::to_string(last) + "; stages are numbered from 0, in order and without gaps");
      last = stage;
      if (tile < 0) continue;
      if (statistic < 0 || statistic > gaia::cpu::kPositive)
        throw std::invalid_argument("a step with unknown statistic " + std::to_string(statistic));
      if (tile > 4 || tile == 3) throw std::invalid_argument("a step of unknown form " + std::to_string(tile));
      check_packing(sizes, tile);
    }
  }

  bool run(const std::vector<uintptr_t>& given, int threads, const std::optional<py::function>& meanwhile) const {
    Called called{meanwhile, nullptr};
    const bool done = run_unlocked(given, threads, {meanwhile ? Called::call : nullptr, &called});
    if (called.error) std::rethrow_exception(called.error);
    return done;
  }

 private:
  // A function of Python's, called in the middle of what runs without Python's lock.
  struct Called {
    const std::optional<py::function>& function;
    std::exception_ptr error;

    static void call(void* context) {
      Called& self = *static_cast<Called*>(context);
      const py::gil_scoped_acquire locked;
      try {
        (*self.function)();
      } catch (...) {
        self.error = std::current_exception();
      }
    }
  };

  // sizes[22] floats were packed: for each position of the form, as many as there are inputs and outputs.
  static void check_packing(const std::vector<int64_t>& sizes, int tile) {
    if (tile == 0) return;
    const int64_t inputs = sizes[3], outputs = sizes[6], side = tile + 2;
    const int64_t positions = tile == 1 ? sizes[7] * sizes[8] : side * side;
    if (outputs % gaia::cpu::kPackedGroup != 0 || sizes[22] != positions * inputs * outputs)
      throw std::invalid_argument("a step of form " + std::to_string(tile) + " with " + std::to_string(inputs) +
                                  " inputs and " + std::to_string(outputs) + " outputs, and " +
                                  std::to_string(sizes[22]) + " packed weights");
  }

  bool run_unlocked(const std::vector<uintptr_t>& given, int threads, const gaia::cpu::Meanwhile& meanwhile) const {
    py::gil_scoped_release unlocked;
    std::vector<gaia::cpu::Step> steps;
    steps.reserve(steps_.size());
    for (const auto& [stage, pointers, sizes, tile, relu, statistic] : steps_) {
      const auto at = [&, &pointers = pointers](size_t i) {
        const auto [place, offset] = pointers[i];
        return place < 0 ? reinterpret_cast<float*>(offset)
                         : reinterpret_cast<float*>(given.at(static_cast<size_t>(place))) + offset;
      };
      const auto& z = sizes;
      if (tile < 0) {
        steps.push_back({stage, {}, {at(0), at(1), z[0], z[1], z[2], z[3], z[4], z[5], z[6], z[7], z[8]}});
      } else {
        steps.push_back({stage,
                         {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9), z[0],     z[1],
                          z[2],  z[3],  z[4],  z[5],  z[6],  z[7],  z[8],  z[9],  z[10], z[11], z[12],    z[13],
                          z[14], z[15], z[16], z[17], z[18], z[19], z[20], z[21], tile,  relu,  statistic},
                         {}});
      }
    }
    return active->chain(steps.data(), static_cast<int64_t>(steps.size()), threads, meanwhile);
  }

  std::vector<StepArguments> steps_;
};

#ifdef GAIA_CUDA

// What `Tiling` holds, as the Python side knows it: layout, vector, block_k, chunk, splits, stride_split, piece.
gaia::cuda::Tiling make_tiling(const std::array<int64_t, 7>& t) {
  return {static_cast<gaia::cuda::Layout>(t[0]),
          static_cast<int>(t[1]),
          static_cast<int>(t[2]),
          t[3],
          t[4],
          t[5],
          static_cast<int>(t[6])};
}

void check_launch(const std::string& error, const Sizes& shape) {
  if (error.empty()) return;
  std::string text = " on a map of shape (";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  throw std::runtime_error("CUDA kernel " + error + text + ")");
}

gaia::cuda::Stream to_stream(uintptr_t stream) { return reinterpret_cast<gaia::cuda::Stream>(stream); }

void define_cuda(py::module_& m) {
  m.def("cuda_build", [] { return std::string(gaia::cuda::build()); });
  m.def("cuda_obstacle", gaia::cuda::obstacle);

  m.def("cuda_channel_moments",
        [](uintptr_t g, int dtype, Sizes shape, Sizes strides, uintptr_t out, int64_t stride_moment, int64_t stride_n,
           std::array<int64_t, 7> tiling, int device, uintptr_t stream) {
          py::gil_scoped_release unlocked;
          check_launch(gaia::cuda::channel_moments(make_map(g, dtype, shape, strides),
                                                   make_moments(out, stride_moment, stride_n), make_tiling(tiling),
                                                   device, to_stream(stream)),
                       shape);
        });

  m.def("cuda_relu_backward_moments",
        [](uintptr_t g, uintptr_t y, uintptr_t scale, uintptr_t grad_in, int dtype, Sizes shape, Sizes g_strides,
           Sizes y_strides, Sizes grad_in_strides, uintptr_t out, int64_t stride_moment, int64_t stride_n,
           std::array<int64_t, 7> tiling, int device, uintptr_t stream) {
          py::gil_scoped_release unlocked;
          const gaia_map y_map = make_map(y, dtype, shape, y_strides);
          check_launch(gaia::cuda::relu_backward_moments(
                           make_map(g, dtype, shape, g_strides), y != 0 ? &y_map : nullptr,
                           reinterpret_cast<const float*>(scale), make_map(grad_in, dtype, shape, grad_in_strides),
                           make_moments(out, stride_moment, stride_n), make_tiling(tiling), device, to_stream(stream)),
                       shape);
        });

  m.def("cuda_relu_forward_count", [](uintptr_t x, uintptr_t residual, uintptr_t scale, uintptr_t shift, uintptr_t y,
                                      int dtype, Sizes shape, Sizes x_strides, Sizes residual_strides, Sizes y_strides,
                                      uintptr_t nonzero, int64_t stride_n, std::array<int64_t, 7> tiling, int device,
                                      uintptr_t stream) {
    py::gil_scoped_release unlocked;
    const gaia_map residual_map = make_map(residual, dtype, shape, residual_strides);
    const gaia_moments counts = {nullptr, nullptr, reinterpret_cast<float*>(nonzero), stride_n};
    check_launch(gaia::cuda::relu_forward_count(
                     make_map(x, dtype, shape, x_strides), residual != 0 ? &residual_map : nullptr,
                     reinterpret_cast<const float*>(scale), reinterpret_cast<const float*>(shift),
                     make_map(y, dtype, shape, y_strides), counts, make_tiling(tiling), device, to_stream(stream)),
                 shape);
  });

  m.def("cuda_add_partials", [](uintptr_t partial, int64_t splits, int64_t stride_split, int64_t rows, int64_t columns,
                                uintptr_t out, int64_t images, int64_t stride_moment, int64_t stride_n, int device,
                                uintptr_t stream) {
    py::gil_scoped_release unlocked;
    check_launch(gaia::cuda::add_partials({reinterpret_cast<const float*>(partial), splits, stride_split, rows, columns,
                                           reinterpret_cast<float*>(out), images, stride_moment, stride_n},
                                          device, to_stream(stream)),
                 {splits, rows, columns, 1});
  });

  m.def("cuda_frobenius", [](uintptr_t moments, int64_t n, int64_t stride_n, const std::vector<int64_t>& begins,
                             const std::vector<int64_t>& widths, const std::vector<double>& inverse_area,
                             uintptr_t output_component, double p, uintptr_t score, int device, uintptr_t stream) {
    py::gil_scoped_release unlocked;
    const int64_t layers = static_cast<int64_t>(widths.size());
    check_launch(
        gaia::cuda::frobenius(
            {reinterpret_cast<const float*>(moments), n, stride_n, begins.data(), widths.data(), inverse_area.data(),
             layers, reinterpret_cast<const float*>(output_component), p, reinterpret_cast<float*>(score)},
            device, to_stream(stream)),
        {n, layers, 1, 1});
  });
}

#endif

}  // namespace

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "The C++ and CUDA kernels of gaia_fast on raw pointers; use gaia_fast.ops instead.";
  active = initial_level();

  m.def("cpu_levels", [] {
    std::vector<std::string> levels;
    for (auto table = gaia::cpu::supported_tables(); *table != nullptr; ++table) levels.push_back((*table)->level);
    return levels;
  });
  m.def("cpu_level", [] { return std::string(active->level); });
  m.def("set_cpu_level", [](const std::string& level) { active = find_level(level); });

#ifdef GAIA_CUDA
  define_cuda(m);
#else
  m.def("cuda_build", [] { return std::string(); });
#endif
  gaia::define_fingerprint(m);

  m.def("channel_moments", [](uintptr_t g, int dtype, Sizes shape, Sizes strides, uintptr_t out, int64_t stride_moment,
                              int64_t stride_n, int threads) {
    py::gil_scoped_release unlocked;
    active->channel_moments(make_map(g, dtype, shape, strides), make_moments(out, stride_moment, stride_n), threads);
  });

  m.def("relu_backward_moments", [](uintptr_t g, uintptr_t y, uintptr_t scale, uintptr_t grad_in, int dtype,
                                    Sizes shape, Sizes g_strides, Sizes y_strides, Sizes grad_in_strides, uintptr_t out,
                                    int64_t stride_moment, int64_t stride_n, int threads) {
    py::gil_scoped_release unlocked;
    const gaia_map y_map = make_map(y, dtype, shape, y_strides);
    active->relu_backward_moments(
        make_map(g, dtype, shape, g_strides), y != 0 ? &y_map : nullptr, reinterpret_cast<const float*>(scale),
        make_map(grad_in, dtype, shape, grad_in_strides), make_moments(out, stride_moment, stride_n), threads);
  });

  m.def("relu_forward_count",
        [](uintptr_t x, uintptr_t residual, uintptr_t scale, uintptr_t shift, uintptr_t y, int dtype, Sizes shape,
           Sizes x_strides, Sizes residual_strides, Sizes y_strides, uintptr_t nonzero, int threads) {
          py::gil_scoped_release unlocked;
          const gaia_map residual_map = make_map(residual, dtype, shape, residual_strides);
          const gaia_moments counts = {nullptr, nullptr, reinterpret_cast<float*>(nonzero), shape[1]};
          active->relu_forward_count(make_map(x, dtype, shape, x_strides), residual != 0 ? &residual_map : nullptr,
                                     reinterpret_cast<const float*>(scale), reinterpret_cast<const float*>(shift),
                                     make_map(y, dtype, shape, y_strides), counts, threads);
        });

  py::class_<Chain>(m, "Chain")
      .def(py::init<const std::vector<StepArguments>&>())
      .def("run", &Chain::run, py::arg("given"), py::arg("threads"), py::arg("meanwhile") = py::none());

  m.def("open_everywhere",
        [](uintptr_t y, Sizes shape, std::array<int64_t, 2> grid, std::array<int64_t, 2> channels, uintptr_t out) {
          py::gil_scoped_release unlocked;
          gaia::cpu::open_everywhere({reinterpret_cast<float*>(y), reinterpret_cast<float*>(out), shape[0], shape[1],
                                      shape[2], shape[3], grid[0], grid[1], channels[0], channels[1], 1});
        });

  m.def("pooled_logits",
        [](uintptr_t x, Sizes sizes, uintptr_t weight, uintptr_t bias, uintptr_t pooled, uintptr_t logits) {
          py::gil_scoped_release unlocked;
          active->pooled_logits({reinterpret_cast<const float*>(x), sizes[0], sizes[1], sizes[2], sizes[3],
                                 reinterpret_cast<const float*>(weight), reinterpret_cast<const float*>(bias),
                                 reinterpret_cast<float*>(pooled), reinterpret_cast<float*>(logits)});
        });

  m.def("output_component", [](uintptr_t logits, std::array<int64_t, 3> sizes, uintptr_t weight, float factor,
                               uintptr_t slopes, uintptr_t out) {
    py::gil_scoped_release unlocked;
    active->output_component({reinterpret_cast<const float*>(logits), sizes[0], sizes[1], sizes[2],
                              reinterpret_cast<const float*>(weight), factor, reinterpret_cast<float*>(slopes),
                              reinterpret_cast<float*>(out)});
  });

  m.attr("PACKED_GROUP") = gaia::cpu::kPackedGroup;
  m.attr("PACKED_DEPTH") = gaia::cpu::kPackedDepth;
  m.attr("STATISTICS") = py::dict(py::arg("sum") = static_cast<int>(gaia::cpu::kSum),
                                  py::arg("abs_sum") = static_cast<int>(gaia::cpu::kAbsSum),
                                  py::arg("positive") = static_cast<int>(gaia::cpu::kPositive));

  m.def("all_finite", [](uintptr_t x, int64_t count) {
    py::gil_scoped_release unlocked;
    return gaia::cpu::all_finite(reinterpret_cast<const float*>(x), count);
  });

  m.def("sound", [](uintptr_t logits, int64_t n, int64_t classes, uintptr_t score, uintptr_t live, int64_t conditions,
                    uintptr_t component, double flat) {
    return gaia::cpu::sound({reinterpret_cast<const float*>(logits), n, classes, reinterpret_cast<const float*>(score),
                             reinterpret_cast<const float*>(live), conditions,
                             reinterpret_cast<const float*>(component), flat});
  });

  m.def("frobenius", [](uintptr_t moments, int64_t n, int64_t stride_n, const std::vector<int64_t>& begins,
                        const std::vector<int64_t>& widths, const std::vector<double>& inverse_area,
                        uintptr_t output_component, double p, uintptr_t score) {
    py::gil_scoped_release unlocked;
    gaia::cpu::frobenius({reinterpret_cast<const float*>(moments), n, stride_n, begins.data(), widths.data(),
                          inverse_area.data(), static_cast<int64_t>(inverse_area.size()),
                          reinterpret_cast<const float*>(output_component), p, reinterpret_cast<float*>(score)});
  });
}

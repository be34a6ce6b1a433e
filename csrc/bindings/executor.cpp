// Steps as typed records, and executables made of them: each record is checked where it is made, and the order of the
// waves where they are put together, so that what `execute` is given can be run.
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/level.h"
#include "cpu/kernels.h"

namespace gaia {

namespace {

using Pair = std::array<int64_t, 2>;

// (-1, an address; 0 for none), or (i, so many floats into the i-th buffer that `run` is given); and of a map, how many
// floats lie between two positions.
using Pointer = std::array<int64_t, 3>;

const Pointer kNull = {-1, 0, 0};

bool is_null(const Pointer& pointer) { return pointer[0] < 0 && pointer[1] == 0; }

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

void check_pitch(const Pointer& map, int64_t channels) {
  require(is_null(map) || map[2] >= channels,
          "a map of " + std::to_string(channels) + " channels, positions " + std::to_string(map[2]) + " apart");
}

struct Epilogue {
  Pointer y, bias, residual, relu_mask, scale, skip, sums;
  int64_t sums_stride;
  bool relu;
  cpu::Statistic statistic;

  Epilogue(Pointer y, Pointer bias, Pointer residual, Pointer relu_mask, Pointer scale, Pointer skip, Pointer sums,
           int64_t sums_stride, bool relu, int statistic)
      : y(y),
        bias(bias),
        residual(residual),
        relu_mask(relu_mask),
        scale(scale),
        skip(skip),
        sums(sums),
        sums_stride(sums_stride),
        relu(relu),
        statistic(static_cast<cpu::Statistic>(statistic)) {
    require(!is_null(y), "an epilogue without y");
    require(statistic >= cpu::kSum && statistic <= cpu::kPositive,
            "an epilogue with unknown statistic " + std::to_string(statistic));
  }

  void check(int64_t outputs) const {
    require(is_null(sums) || sums_stride >= outputs,
            "sums of " + std::to_string(outputs) + " channels, images " + std::to_string(sums_stride) + " apart");
    for (const Pointer& map : {y, residual, relu_mask, skip}) check_pitch(map, outputs);
  }
};

struct ConvolutionStep {
  int64_t wave;
  cpu::Algorithm algorithm;
  Pointer x, packed;
  Sizes shape;
  Pair out;
  int64_t outputs;
  Pair kernel, stride, padding, dilation, y_size, begin, step;
  Epilogue epilogue;

  ConvolutionStep(int64_t wave, int algorithm, Pointer x, const Sizes& shape, Pointer packed, int64_t packed_size,
                  const Pair& out, int64_t outputs, const Pair& kernel, const Pair& stride, const Pair& padding,
                  const Pair& dilation, const Pair& y_size, const Pair& begin, const Pair& step,
                  const Epilogue& epilogue)
      : wave(wave),
        algorithm(static_cast<cpu::Algorithm>(algorithm)),
        x(x),
        packed(packed),
        shape(shape),
        out(out),
        outputs(outputs),
        kernel(kernel),
        stride(stride),
        padding(padding),
        dilation(dilation),
        y_size(y_size),
        begin(begin),
        step(step),
        epilogue(epilogue) {
    const std::string self = "a convolution by algorithm " + std::to_string(algorithm);
    require(algorithm == cpu::kIndirectGemm || algorithm == cpu::kWinogradF2 || algorithm == cpu::kWinogradF4,
            self + ", which does not exist");
    require(!is_null(x), self + " without x");
    for (const int64_t size : {shape[0], shape[1], shape[2], shape[3], out[0], out[1], outputs, stride[0], stride[1],
                               dilation[0], dilation[1], step[0], step[1]})
      require(size > 0, self + " with a size or distance of " + std::to_string(size));
    for (int axis : {0, 1}) {
      require(kernel[axis] >= 0, self + " with a window of " + std::to_string(kernel[axis]) + " positions");
      require(begin[axis] >= 0 && begin[axis] + (out[axis] - 1) * step[axis] < y_size[axis],
              self + " with outputs outside of y");
    }
    const bool winograd = algorithm != cpu::kIndirectGemm;
    const Pair one = {1, 1};
    require(!winograd || (kernel == Pair{3, 3} && stride == one && dilation == one && step == one && begin == Pair{} &&
                          out == y_size && shape[1] % cpu::kPackedNr == 0),
            self + ", which takes 3x3 windows side by side, channels in whole groups, and all of y");
    const int64_t side = winograd ? algorithm + 2 : 0;
    const int64_t positions = winograd ? side * side : kernel[0] * kernel[1];
    require(outputs % cpu::kPackedNr == 0 && packed_size == positions * shape[1] * outputs,
            self + " with " + std::to_string(shape[1]) + " inputs and " + std::to_string(outputs) + " outputs, and " +
                std::to_string(packed_size) + " packed weights");
    require(packed_size == 0 || !is_null(packed), self + " without its packed weights");
    check_pitch(x, shape[1]);
    epilogue.check(outputs);
  }
};

struct PointwiseStep {
  int64_t wave;
  Pointer x, factor;
  Sizes shape;
  Epilogue epilogue;

  PointwiseStep(int64_t wave, Pointer x, const Sizes& shape, Pointer factor, const Epilogue& epilogue)
      : wave(wave), x(x), factor(factor), shape(shape), epilogue(epilogue) {
    require(!is_null(x), "a pointwise step without x");
    for (const int64_t size : shape) require(size > 0, "a pointwise step with a size of " + std::to_string(size));
    require(shape[1] % cpu::kPackedNr == 0, "a pointwise step with " + std::to_string(shape[1]) + " channels");
    check_pitch(x, shape[1]);
    epilogue.check(shape[1]);
  }
};

struct CheckStep {
  int64_t wave;
  Pointer y, out;
  Sizes shape;
  int64_t begin, step, first, last, out_stride;

  CheckStep(int64_t wave, Pointer y, const Sizes& shape, int64_t begin, int64_t step, int64_t first, int64_t last,
            Pointer out, int64_t out_stride)
      : wave(wave),
        y(y),
        out(out),
        shape(shape),
        begin(begin),
        step(step),
        first(first),
        last(last),
        out_stride(out_stride) {
    require(!is_null(y) && !is_null(out), "a check without a map, or a place for its answers");
    for (const int64_t size : shape) require(size > 0, "a check with a size of " + std::to_string(size));
    check_pitch(y, shape[1]);
    require(begin >= 0 && step > 0,
            "a check of positions from " + std::to_string(begin) + " on, " + std::to_string(step) + " apart");
    require(first >= 0 && first <= last && last <= shape[1], "a check of channels " + std::to_string(first) + " to " +
                                                                 std::to_string(last) + " of " +
                                                                 std::to_string(shape[1]));
    require(out_stride > 0, "a check whose answers are " + std::to_string(out_stride) + " apart");
  }
};

using AnyStep = std::variant<ConvolutionStep, PointwiseStep, CheckStep>;

int64_t wave_of(const AnyStep& any) {
  return std::visit([](const auto& step) { return step.wave; }, any);
}

AnyStep to_step(py::handle object) {
  if (py::isinstance<ConvolutionStep>(object)) return object.cast<ConvolutionStep>();
  if (py::isinstance<PointwiseStep>(object)) return object.cast<PointwiseStep>();
  if (py::isinstance<CheckStep>(object)) return object.cast<CheckStep>();
  throw std::invalid_argument("a " + std::string(py::str(py::type::of(object).attr("__name__"))) +
                              " in place of a ConvolutionStep, PointwiseStep or CheckStep");
}

// A pointer, once the buffers are known.
class Resolver {
 public:
  explicit Resolver(const std::vector<uintptr_t>& buffers) : buffers_(buffers) {}

  float* operator()(const Pointer& pointer) const {
    const int64_t buffer = pointer[0], offset = pointer[1];
    return buffer < 0 ? reinterpret_cast<float*>(offset)
                      : reinterpret_cast<float*>(buffers_.at(static_cast<size_t>(buffer))) + offset;
  }

  cpu::Map map(const Pointer& pointer) const { return {(*this)(pointer), pointer[2]}; }

  void add(cpu::Convolution& job, const Epilogue& epilogue) const {
    job.y = map(epilogue.y), job.sums = (*this)(epilogue.sums), job.sums_stride = epilogue.sums_stride;
    job.bias = (*this)(epilogue.bias), job.residual = map(epilogue.residual);
    job.relu_mask = map(epilogue.relu_mask), job.scale = (*this)(epilogue.scale);
    job.skip = map(epilogue.skip), job.relu = epilogue.relu, job.statistic = epilogue.statistic;
  }

  cpu::Step operator()(const ConvolutionStep& step) const {
    cpu::Step made = {step.wave, {}, {}};
    cpu::Convolution& job = made.convolution;
    job.algorithm = step.algorithm, job.x = map(step.x), job.packed = (*this)(step.packed);
    job.n = step.shape[0], job.c = step.shape[1], job.h = step.shape[2], job.w = step.shape[3];
    job.out_h = step.out[0], job.out_w = step.out[1], job.k = step.outputs;
    job.kernel_h = step.kernel[0], job.kernel_w = step.kernel[1];
    job.stride_h = step.stride[0], job.stride_w = step.stride[1];
    job.pad_h = step.padding[0], job.pad_w = step.padding[1];
    job.dilation_h = step.dilation[0], job.dilation_w = step.dilation[1];
    job.y_h = step.y_size[0], job.y_w = step.y_size[1];
    job.begin_h = step.begin[0], job.begin_w = step.begin[1], job.step_h = step.step[0], job.step_w = step.step[1];
    add(job, step.epilogue);
    return made;
  }

  cpu::Step operator()(const PointwiseStep& step) const {
    cpu::Step made = {step.wave, {}, {}};
    cpu::Convolution& job = made.convolution;
    job.algorithm = cpu::kPointwise, job.x = map(step.x), job.factor = (*this)(step.factor);
    job.n = step.shape[0], job.c = job.k = step.shape[1];
    job.h = job.out_h = step.shape[2], job.w = job.out_w = step.shape[3];
    add(job, step.epilogue);
    return made;
  }

  cpu::Step operator()(const CheckStep& step) const {
    return {step.wave,
            {},
            {map(step.y), (*this)(step.out), step.shape[0], step.shape[2], step.shape[3], step.begin, step.step,
             step.first, step.last, step.out_stride}};
  }

 private:
  const std::vector<uintptr_t>& buffers_;
};

// Steps on buffers that each run names anew; safe to run from several threads.
class Executable {
 public:
  explicit Executable(const py::list& steps) {
    int64_t last = -1;
    for (const py::handle each : steps) {
      const AnyStep& step = steps_.emplace_back(to_step(each));
      const int64_t wave = wave_of(step);
      // A wave without steps is never done: the threads would wait for it for ever.
      require(wave >= 0 && (wave == last || wave == last + 1),
              "a step of wave " + std::to_string(wave) + " behind " +
                  (last < 0 ? "none" : "one of wave " + std::to_string(last)) +
                  "; waves are numbered from 0, in order and without gaps");
      last = wave;
    }
  }

  bool run(const std::vector<uintptr_t>& buffers, int threads, const std::optional<py::function>& callback) const {
    require(threads > 0, "an executable on " + std::to_string(threads) + " threads");
    Called called{callback, nullptr};
    const bool done = run_unlocked(buffers, threads, {callback ? Called::call : nullptr, &called});
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

  bool run_unlocked(const std::vector<uintptr_t>& buffers, int threads, const cpu::HostCallback& callback) const {
    py::gil_scoped_release unlocked;
    const Resolver resolve(buffers);
    std::vector<cpu::Step> steps;
    steps.reserve(steps_.size());
    for (const AnyStep& step : steps_) steps.push_back(std::visit(resolve, step));
    return active_level().execute(steps.data(), static_cast<int64_t>(steps.size()), threads, callback);
  }

  std::vector<AnyStep> steps_;
};

}  // namespace

void define_executor(py::module_& m) {
  m.attr("PACKED_NR") = cpu::kPackedNr;
  m.attr("PACKED_PANELS") = cpu::kPackedPanels;
  m.attr("PACKED_KC") = cpu::kPackedKc;
  m.attr("ALGORITHMS") = py::dict(py::arg("indirect_gemm") = static_cast<int>(cpu::kIndirectGemm),
                                  py::arg("winograd_f2") = static_cast<int>(cpu::kWinogradF2),
                                  py::arg("winograd_f4") = static_cast<int>(cpu::kWinogradF4));
  m.attr("STATISTICS") =
      py::dict(py::arg("sum") = static_cast<int>(cpu::kSum), py::arg("abs_sum") = static_cast<int>(cpu::kAbsSum),
               py::arg("positive") = static_cast<int>(cpu::kPositive));

  py::class_<Epilogue>(m, "Epilogue")
      .def(py::init<Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, int64_t, bool, int>(), py::kw_only(),
           py::arg("y"), py::arg("bias") = kNull, py::arg("residual") = kNull, py::arg("relu_mask") = kNull,
           py::arg("scale") = kNull, py::arg("skip") = kNull, py::arg("sums") = kNull, py::arg("sums_stride") = 0,
           py::arg("relu") = false, py::arg("statistic") = static_cast<int>(cpu::kSum));
  py::class_<ConvolutionStep>(m, "ConvolutionStep")
      .def(py::init<int64_t, int, Pointer, const Sizes&, Pointer, int64_t, const Pair&, int64_t, const Pair&,
                    const Pair&, const Pair&, const Pair&, const Pair&, const Pair&, const Pair&, const Epilogue&>(),
           py::kw_only(), py::arg("wave"), py::arg("algorithm"), py::arg("x"), py::arg("shape"), py::arg("packed"),
           py::arg("packed_size"), py::arg("out"), py::arg("outputs"), py::arg("kernel"), py::arg("stride"),
           py::arg("padding"), py::arg("dilation"), py::arg("y_size"), py::arg("begin"), py::arg("step"),
           py::arg("epilogue"));
  py::class_<PointwiseStep>(m, "PointwiseStep")
      .def(py::init<int64_t, Pointer, const Sizes&, Pointer, const Epilogue&>(), py::kw_only(), py::arg("wave"),
           py::arg("x"), py::arg("shape"), py::arg("factor"), py::arg("epilogue"));
  py::class_<CheckStep>(m, "CheckStep")
      .def(py::init<int64_t, Pointer, const Sizes&, int64_t, int64_t, int64_t, int64_t, Pointer, int64_t>(),
           py::kw_only(), py::arg("wave"), py::arg("y"), py::arg("shape"), py::arg("begin"), py::arg("step"),
           py::arg("first"), py::arg("last"), py::arg("out"), py::arg("out_stride"));
  py::class_<Executable>(m, "Executable")
      .def(py::init<const py::list&>(), py::arg("steps"))
      .def("run", &Executable::run, py::arg("buffers"), py::arg("threads"), py::arg("callback") = py::none());
}

}  // namespace gaia

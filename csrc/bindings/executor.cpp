// Steps as typed records, and executables made of them: each record is checked where it is made, and the order of the
// waves where they are put together, so that what `execute` is given can be run.
#include <omp.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <limits>
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
  Pointer y, bias, residual, relu_mask, scale, skip, sums, bits;
  int64_t sums_stride, channels;
  cpu::Activation activation;
  float upper;
  cpu::Statistic statistic;

  Epilogue(Pointer y, Pointer bias, Pointer residual, Pointer relu_mask, Pointer scale, Pointer skip, Pointer sums,
           Pointer bits, int64_t sums_stride, int64_t channels, int activation, float upper, int statistic)
      : y(y),
        bias(bias),
        residual(residual),
        relu_mask(relu_mask),
        scale(scale),
        skip(skip),
        sums(sums),
        bits(bits),
        sums_stride(sums_stride),
        channels(channels),
        activation(static_cast<cpu::Activation>(activation)),
        upper(upper),
        statistic(static_cast<cpu::Statistic>(statistic)) {
    require(!is_null(y), "an epilogue without y");
    require(activation >= cpu::kIdentity && activation <= cpu::kSigmoid,
            "an epilogue with unknown activation " + std::to_string(activation));
    require(statistic >= cpu::kSum && statistic <= cpu::kPositive,
            "an epilogue with unknown statistic " + std::to_string(statistic));
    require(upper > 0, "an epilogue whose activation is at most " + std::to_string(upper));
  }

  // For so many outputs, padded.
  void check(int64_t outputs) const {
    require(channels > outputs - cpu::kPackedNr && channels <= outputs,
            "an epilogue of " + std::to_string(channels) + " channels behind " + std::to_string(outputs) + " outputs");
    require(is_null(sums) || sums_stride >= channels,
            "sums of " + std::to_string(channels) + " channels, images " + std::to_string(sums_stride) + " apart");
    for (const Pointer& map : {y, residual, relu_mask, skip}) check_pitch(map, outputs);
  }
};

// Windows over a map of (N, C, H, W), C whole panels, that lead to a map of size `out`.
struct Windows {
  cpu::Windows value;

  Windows(const Sizes& shape, const Pair& out, const Pair& kernel, const Pair& stride, const Pair& padding,
          const Pair& dilation)
      : value{shape[0],  shape[2],  shape[3],  shape[1],   out[0],     out[1],      kernel[0],
              kernel[1], stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]} {
    for (const int64_t size : {shape[0], shape[1], shape[2], shape[3], out[0], out[1], kernel[0], kernel[1], stride[0],
                               stride[1], dilation[0], dilation[1]})
      require(size > 0, "windows with a size or distance of " + std::to_string(size));
    require(shape[1] % cpu::kPackedNr == 0, "windows over " + std::to_string(shape[1]) + " channels");
    for (int axis : {0, 1}) {
      const int64_t size = shape[static_cast<size_t>(2 + axis)];
      const int64_t last = (out[axis] - 1) * stride[axis] - padding[axis];
      require(padding[axis] >= 0 && padding[axis] < kernel[axis] * dilation[axis] && last < size,
              "windows of which one is outside of the map");
    }
  }
};

struct ConvolutionStep {
  int64_t wave;
  cpu::Algorithm algorithm;
  Pointer x, packed;
  Sizes shape;
  Pair out;
  int64_t outputs, group;
  Pair kernel, stride, padding, dilation, y_size, begin, step;
  Epilogue epilogue;

  ConvolutionStep(int64_t wave, int algorithm, Pointer x, const Sizes& shape, Pointer packed, int64_t packed_size,
                  const Pair& out, int64_t outputs, int64_t group, const Pair& kernel, const Pair& stride,
                  const Pair& padding, const Pair& dilation, const Pair& y_size, const Pair& begin, const Pair& step,
                  const Epilogue& epilogue)
      : wave(wave),
        algorithm(static_cast<cpu::Algorithm>(algorithm)),
        x(x),
        packed(packed),
        shape(shape),
        out(out),
        outputs(outputs),
        group(group),
        kernel(kernel),
        stride(stride),
        padding(padding),
        dilation(dilation),
        y_size(y_size),
        begin(begin),
        step(step),
        epilogue(epilogue) {
    const std::string self = "a convolution by algorithm " + std::to_string(algorithm);
    require(algorithm > cpu::kPointwise && algorithm <= cpu::kWinogradF4, self + ", which does not exist");
    require(!is_null(x), self + " without x");
    for (const int64_t size : {shape[0], shape[1], shape[2], shape[3], out[0], out[1], outputs, stride[0], stride[1],
                               dilation[0], dilation[1], step[0], step[1]})
      require(size > 0, self + " with a size or distance of " + std::to_string(size));
    for (int axis : {0, 1}) {
      require(kernel[axis] >= 0, self + " with a window of " + std::to_string(kernel[axis]) + " positions");
      require(begin[axis] >= 0 && begin[axis] + (out[axis] - 1) * step[axis] < y_size[axis],
              self + " with outputs outside of y");
    }
    const bool winograd = algorithm == cpu::kWinogradF2 || algorithm == cpu::kWinogradF4;
    const bool grouped = algorithm == cpu::kGrouped;
    const Pair one = {1, 1};
    require(!winograd || (kernel == Pair{3, 3} && stride == one && dilation == one && step == one && begin == Pair{} &&
                          out == y_size && shape[1] % cpu::kPackedNr == 0),
            self + ", which takes 3x3 windows side by side, channels in whole groups, and all of y");
    const int64_t side = winograd ? algorithm + 2 : 0;
    const int64_t positions = winograd ? side * side : kernel[0] * kernel[1];
    require(!grouped || (group > 0 && (group % cpu::kPackedNr == 0 || cpu::kPackedNr % group == 0) &&
                         outputs % group == 0 && x[2] >= outputs && shape[1] > outputs - cpu::kPackedNr),
            self + " in groups of " + std::to_string(group) + " channels");
    const int64_t inputs = grouped ? group : shape[1];
    require(outputs % cpu::kPackedNr == 0 && packed_size == positions * inputs * outputs,
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

  int64_t factor_stride;

  PointwiseStep(int64_t wave, Pointer x, const Sizes& shape, Pointer factor, int64_t factor_stride,
                const Epilogue& epilogue)
      : wave(wave), x(x), factor(factor), shape(shape), epilogue(epilogue), factor_stride(factor_stride) {
    require(!is_null(x) || !is_null(factor), "a pointwise step without x and factor");
    for (const int64_t size : shape) require(size > 0, "a pointwise step with a size of " + std::to_string(size));
    require(shape[1] % cpu::kPackedNr == 0, "a pointwise step with " + std::to_string(shape[1]) + " channels");
    check_pitch(x, shape[1]);
    epilogue.check(shape[1]);
  }
};

struct ChannelsLastStep {
  int64_t wave;
  Pointer x, y;
  Sizes shape;

  ChannelsLastStep(int64_t wave, Pointer x, const Sizes& shape, Pointer y) : wave(wave), x(x), y(y), shape(shape) {
    require(!is_null(x) && !is_null(y), "a copy without a map, or a place for it");
    for (const int64_t size : shape) require(size > 0, "a copy with a size of " + std::to_string(size));
    check_pitch(y, shape[1]);
  }
};

struct CheckStep {
  int64_t wave;
  Pointer y, out;
  Sizes shape;
  int64_t begin, step, first, last, out_stride;
  float bound;
  cpu::Test test;

  CheckStep(int64_t wave, Pointer y, const Sizes& shape, int64_t begin, int64_t step, int64_t first, int64_t last,
            Pointer out, int64_t out_stride, float bound, int test)
      : wave(wave),
        y(y),
        out(out),
        shape(shape),
        begin(begin),
        step(step),
        first(first),
        last(last),
        out_stride(out_stride),
        bound(bound),
        test(static_cast<cpu::Test>(test)) {
    require(test >= cpu::kSomeAbove && test <= cpu::kAllFinite, "a check by unknown test " + std::to_string(test));
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

struct PoolStep {
  int64_t wave;
  Pointer x, y;
  Windows windows;
  cpu::PoolKind kind;
  bool pad_zeros;
  int64_t divisor;
  Pointer alive, counts;
  int64_t counts_stride, channels;

  PoolStep(int64_t wave, Pointer x, Pointer y, const Windows& windows, int kind, bool pad_zeros, int64_t divisor,
           Pointer alive, Pointer counts, int64_t counts_stride, int64_t channels)
      : wave(wave),
        x(x),
        y(y),
        windows(windows),
        kind(static_cast<cpu::PoolKind>(kind)),
        pad_zeros(pad_zeros),
        divisor(divisor),
        alive(alive),
        counts(counts),
        counts_stride(counts_stride),
        channels(channels) {
    require(!is_null(x) && (!is_null(y) || !is_null(counts)), "a pooling without x, or anything to write");
    require(kind == cpu::kMaximum || kind == cpu::kMean, "a pooling of unknown kind " + std::to_string(kind));
    require(divisor >= 0, "a pooling with divisor " + std::to_string(divisor));
    require(is_null(counts) || (kind == cpu::kMaximum && counts_stride >= channels),
            "a pooling with counts that has none, or no room for them");
    check_pitch(x, windows.value.k), check_pitch(y, windows.value.k);
  }
};

struct GroupNormStep {
  int64_t wave;
  Pointer x, y;
  Sizes shape;
  int64_t groups;
  Pointer scale, shift;
  float epsilon;
  bool relu;
  Pointer sums;
  int64_t sums_stride;

  GroupNormStep(int64_t wave, Pointer x, Pointer y, const Sizes& shape, int64_t groups, Pointer scale, Pointer shift,
                float epsilon, bool relu, Pointer sums, int64_t sums_stride)
      : wave(wave),
        x(x),
        y(y),
        shape(shape),
        groups(groups),
        scale(scale),
        shift(shift),
        epsilon(epsilon),
        relu(relu),
        sums(sums),
        sums_stride(sums_stride) {
    require(!is_null(x) && !is_null(y) && !is_null(scale) && !is_null(shift), "a group norm without a map or a vector");
    for (const int64_t size : shape) require(size > 0, "a group norm with a size of " + std::to_string(size));
    require(groups > 0 && shape[1] % groups == 0 && shape[1] % cpu::kPackedNr == 0,
            "a group norm of " + std::to_string(shape[1]) + " channels in " + std::to_string(groups) + " groups");
    int64_t block = shape[1] / groups;
    while (block % cpu::kPackedNr != 0) block += shape[1] / groups;
    require(shape[1] % block == 0, "a group norm whose groups are no whole panels together");
    require(is_null(sums) || sums_stride >= shape[1], "a group norm without room for its sums");
    check_pitch(x, shape[1]), check_pitch(y, shape[1]);
  }
};

struct MaskStep {
  int64_t wave;
  Windows windows;
  Pointer inner, outer, out, counts;
  int64_t group;
  bool either;
  int64_t counts_stride, channels;

  MaskStep(int64_t wave, const Windows& windows, Pointer inner, Pointer outer, Pointer out, Pointer counts,
           int64_t group, bool either, int64_t counts_stride, int64_t channels)
      : wave(wave),
        windows(windows),
        inner(inner),
        outer(outer),
        out(out),
        counts(counts),
        group(group),
        either(either),
        counts_stride(counts_stride),
        channels(channels) {
    require(!is_null(inner) || !is_null(outer), "a mask of nothing");
    require(group > 0 && (group % cpu::kPackedNr == 0 ? windows.value.k % group == 0 : cpu::kPackedNr % group == 0),
            "a mask in groups of " + std::to_string(group) + " channels");
    require(channels <= windows.value.k && (is_null(counts) || counts_stride >= channels),
            "a mask without room for its counts");
  }
};

struct MaskCheckStep {
  int64_t wave;
  Pointer mask, out;
  Sizes shape;
  int64_t begin, step, out_stride;

  MaskCheckStep(int64_t wave, Pointer mask, const Sizes& shape, int64_t begin, int64_t step, Pointer out,
                int64_t out_stride)
      : wave(wave), mask(mask), out(out), shape(shape), begin(begin), step(step), out_stride(out_stride) {
    require(!is_null(mask) && !is_null(out), "a check without a mask, or a place for its answers");
    for (const int64_t size : shape) require(size > 0, "a check with a size of " + std::to_string(size));
    require(shape[1] % cpu::kPackedNr == 0, "a check of a mask of " + std::to_string(shape[1]) + " channels");
    require(begin >= 0 && step > 0 && out_stride > 0,
            "a check of positions from " + std::to_string(begin) + " on, " + std::to_string(step) + " apart");
  }
};

void check_panels(const Sizes& shape, const std::string& what) {
  for (const int64_t size : shape) require(size > 0, what + " with a size of " + std::to_string(size));
  require(shape[1] % cpu::kPackedNr == 0, what + " of " + std::to_string(shape[1]) + " channels");
}

struct GateGradientStep {
  int64_t wave;
  Pointer g, y, gate, out;
  Sizes shape;

  GateGradientStep(int64_t wave, Pointer g, Pointer y, const Sizes& shape, Pointer gate, Pointer out)
      : wave(wave), g(g), y(y), gate(gate), out(out), shape(shape) {
    require(!is_null(g) && !is_null(y) && !is_null(gate) && !is_null(out), "a gate's gradient without a map");
    check_panels(shape, "a gate's gradient");
    for (const Pointer& each : {g, y, gate, out}) check_pitch(each, shape[1]);
  }
};

struct MeanGradientStep {
  int64_t wave;
  Pointer x, mean, y;
  Sizes shape;

  MeanGradientStep(int64_t wave, Pointer x, const Sizes& shape, Pointer mean, Pointer y)
      : wave(wave), x(x), mean(mean), y(y), shape(shape) {
    require(!is_null(x) && !is_null(mean) && !is_null(y), "a mean's gradient without a map");
    check_panels(shape, "a mean's gradient");
    for (const Pointer& each : {x, mean, y}) check_pitch(each, shape[1]);
  }
};

void check_rows(int64_t images, int64_t columns, int64_t stride, const std::string& what) {
  require(images > 0 && columns > 0 && stride >= columns, what + " of " + std::to_string(images) + " rows of " +
                                                              std::to_string(columns) + " numbers, " +
                                                              std::to_string(stride) + " apart");
}

struct CopyColumnsStep {
  int64_t wave;
  Pointer x, y;
  int64_t images, width, x_stride, y_stride;

  CopyColumnsStep(int64_t wave, Pointer x, int64_t x_stride, int64_t images, int64_t width, Pointer y, int64_t y_stride)
      : wave(wave), x(x), y(y), images(images), width(width), x_stride(x_stride), y_stride(y_stride) {
    require(!is_null(x) && !is_null(y), "a copy of columns without them, or a place for them");
    require(x_stride == 0 || x_stride >= width, "a copy of columns that overlap");  // 0: one row for all images
    check_rows(images, width, y_stride, "a copy");
  }
};

struct LogitSlopesStep {
  int64_t wave;
  Pointer logits, out;
  int64_t images, classes, stride;

  LogitSlopesStep(int64_t wave, Pointer logits, int64_t stride, int64_t images, int64_t classes, Pointer out)
      : wave(wave), logits(logits), out(out), images(images), classes(classes), stride(stride) {
    require(!is_null(logits) && !is_null(out), "slopes without logits, or a place for them");
    check_rows(images, classes, stride, "logits");
    check_pitch(out, classes);
  }
};

struct MeanRootStep {
  int64_t wave;
  Pointer x, out;
  int64_t images, columns, x_stride, out_stride;
  float factor;

  MeanRootStep(int64_t wave, Pointer x, int64_t x_stride, int64_t images, int64_t columns, float factor, Pointer out,
               int64_t out_stride)
      : wave(wave),
        x(x),
        out(out),
        images(images),
        columns(columns),
        x_stride(x_stride),
        out_stride(out_stride),
        factor(factor) {
    require(!is_null(x) && !is_null(out), "means without numbers, or a place for them");
    check_rows(images, columns, x_stride, "means");
    check_rows(images, 1, out_stride, "roots");
  }
};

struct ScoreStep {
  int64_t wave;
  Pointer packed, component, out;
  int64_t images, stride, component_stride, out_stride;
  std::vector<int64_t> begins, widths;
  std::vector<double> inverse_area;

  ScoreStep(int64_t wave, Pointer packed, int64_t stride, int64_t images, const std::vector<int64_t>& widths,
            const std::vector<double>& inverse_area, Pointer component, int64_t component_stride, Pointer out,
            int64_t out_stride)
      : wave(wave),
        packed(packed),
        component(component),
        out(out),
        images(images),
        stride(stride),
        component_stride(component_stride),
        out_stride(out_stride),
        widths(widths),
        inverse_area(inverse_area) {
    require(!is_null(packed) && !is_null(out), "a score without sums, or a place for it");
    require(widths.size() == inverse_area.size(), "a score of " + std::to_string(widths.size()) + " layers with " +
                                                      std::to_string(inverse_area.size()) + " areas");
    int64_t columns = 0;
    for (const int64_t width : widths) {
      require(width > 0, "a score with a layer of " + std::to_string(width) + " columns");
      begins.push_back(columns);
      columns += width;
    }
    check_rows(images, columns, stride, "a score");
    check_rows(images, 1, out_stride, "scores");
    require(is_null(component) || component_stride > 0, "scores whose components are in one place");
  }
};

struct ResultCheckStep {
  int64_t wave;
  Pointer logits, score, preconditions, component, finite, out;
  std::array<int64_t, 6> strides;  // of these, in this order
  int64_t images, classes, precondition_count;
  double rounding;

  ResultCheckStep(int64_t wave, int64_t images, int64_t classes, int64_t precondition_count, Pointer logits,
                  Pointer score, Pointer preconditions, Pointer component, Pointer finite, Pointer out,
                  const std::array<int64_t, 6>& strides, double rounding)
      : wave(wave),
        logits(logits),
        score(score),
        preconditions(preconditions),
        component(component),
        finite(finite),
        out(out),
        strides(strides),
        images(images),
        classes(classes),
        precondition_count(precondition_count),
        rounding(rounding) {
    require(!is_null(logits) && !is_null(score) && !is_null(out),
            "a check of results without logits, score, or a place for its answers");
    check_rows(images, classes, strides[0], "logits");
    for (const size_t i : {size_t{1}, size_t{5}}) check_rows(images, 1, strides[i], "a check of results");
    require(is_null(preconditions) || strides[2] >= precondition_count, "a check of preconditions that overlap");
    require(is_null(component) || strides[3] > 0, "a check of components in one place");
    require(is_null(finite) || strides[4] > 0, "a check of answers in one place");
  }
};

using AnyStep = std::variant<ChannelsLastStep, ConvolutionStep, PointwiseStep, CheckStep, PoolStep, GroupNormStep,
                             MaskStep, MaskCheckStep, GateGradientStep, MeanGradientStep, CopyColumnsStep,
                             LogitSlopesStep, MeanRootStep, ScoreStep, ResultCheckStep>;

template <class... Steps>
AnyStep cast_any(py::handle object, const std::variant<Steps...>*) {
  std::optional<AnyStep> found;
  ((py::isinstance<Steps>(object) ? (void)found.emplace(object.cast<Steps>()) : (void)0), ...);
  if (found) return *found;
  throw std::invalid_argument("a " + std::string(py::str(py::type::of(object).attr("__name__"))) +
                              " in place of a step");
}

int64_t wave_of(const AnyStep& any) {
  return std::visit([](const auto& step) { return step.wave; }, any);
}

AnyStep to_step(py::handle object) { return cast_any(object, static_cast<const AnyStep*>(nullptr)); }

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

  uint16_t* bits(const Pointer& pointer) const { return reinterpret_cast<uint16_t*>((*this)(pointer)); }

  void add(cpu::Convolution& job, const Epilogue& epilogue) const {
    job.y = map(epilogue.y), job.sums = (*this)(epilogue.sums), job.sums_stride = epilogue.sums_stride;
    job.bias = (*this)(epilogue.bias), job.residual = map(epilogue.residual);
    job.relu_mask = map(epilogue.relu_mask), job.scale = (*this)(epilogue.scale);
    job.skip = map(epilogue.skip), job.statistic = epilogue.statistic;
    job.activation = epilogue.activation, job.upper = epilogue.upper, job.channels = epilogue.channels;
    job.bits = bits(epilogue.bits);
  }

  cpu::Step operator()(const ConvolutionStep& step) const {
    cpu::Step made = {step.wave, cpu::kConvolutionStep, {}};
    cpu::Convolution& job = made.convolution;
    job.group = step.group, job.algorithm = step.algorithm, job.x = map(step.x), job.packed = (*this)(step.packed);
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
    cpu::Step made = {step.wave, cpu::kConvolutionStep, {}};
    cpu::Convolution& job = made.convolution;
    job.factor_stride = step.factor_stride, job.algorithm = cpu::kPointwise, job.x = map(step.x),
    job.factor = (*this)(step.factor);
    job.n = step.shape[0], job.c = job.k = step.shape[1];
    job.h = job.out_h = job.y_h = step.shape[2], job.w = job.out_w = job.y_w = step.shape[3];
    add(job, step.epilogue);
    return made;
  }

  cpu::Step operator()(const ChannelsLastStep& step) const {
    cpu::Step made = {step.wave, cpu::kChannelsLastStep, {}};
    made.channels_last = {(*this)(step.x), map(step.y), step.shape[0], step.shape[1], step.shape[2] * step.shape[3]};
    return made;
  }

  cpu::Step operator()(const CheckStep& step) const {
    cpu::Step made = {step.wave, cpu::kCheckStep, {}};
    made.active = {map(step.y), (*this)(step.out), step.shape[0], step.shape[2],   step.shape[3], step.begin,
                   step.step,   step.first,        step.last,     step.out_stride, step.bound,    step.test};
    return made;
  }

  cpu::Step operator()(const PoolStep& step) const {
    cpu::Step made = {step.wave, cpu::kPoolStep, {}};
    made.pool = {map(step.x),  map(step.y),      step.windows.value,   step.kind,          step.pad_zeros,
                 step.divisor, bits(step.alive), (*this)(step.counts), step.counts_stride, step.channels};
    return made;
  }

  cpu::Step operator()(const GroupNormStep& step) const {
    cpu::Step made = {step.wave, cpu::kGroupNormStep, {}};
    made.norm = {map(step.x),   map(step.y), step.shape[0],       step.shape[2] * step.shape[3],
                 step.shape[1], step.groups, (*this)(step.scale), (*this)(step.shift),
                 step.epsilon,  step.relu,   (*this)(step.sums),  step.sums_stride};
    return made;
  }

  cpu::Step operator()(const MaskStep& step) const {
    cpu::Step made = {step.wave, cpu::kMaskStep, {}};
    made.mask = {bits(step.inner), bits(step.outer),     step.windows.value, step.group,   step.either,
                 bits(step.out),   (*this)(step.counts), step.counts_stride, step.channels};
    return made;
  }

  cpu::Step operator()(const GateGradientStep& step) const {
    cpu::Step made = {step.wave, cpu::kGateGradientStep, {}};
    made.gate_gradient = {map(step.g),   map(step.y),   map(step.gate),
                          map(step.out), step.shape[0], step.shape[2] * step.shape[3],
                          step.shape[1]};
    return made;
  }

  cpu::Step operator()(const MeanGradientStep& step) const {
    cpu::Step made = {step.wave, cpu::kMeanGradientStep, {}};
    made.mean_gradient = {map(step.x),  map(step.y), map(step.mean), step.shape[0], step.shape[2] * step.shape[3],
                          step.shape[1]};
    return made;
  }

  cpu::Step operator()(const MaskCheckStep& step) const {
    cpu::Step made = {step.wave, cpu::kMaskCheckStep, {}};
    made.mask_check = {bits(step.mask), (*this)(step.out), step.shape[0], step.shape[2],  step.shape[3],
                       step.shape[1],   step.begin,        step.step,     step.out_stride};
    return made;
  }

  cpu::Step operator()(const CopyColumnsStep& step) const {
    cpu::Step made = {step.wave, cpu::kCopyColumnsStep, {}};
    made.copy_columns = {(*this)(step.x), (*this)(step.y), step.images, step.width, step.x_stride, step.y_stride};
    return made;
  }

  cpu::Step operator()(const LogitSlopesStep& step) const {
    cpu::Step made = {step.wave, cpu::kLogitSlopesStep, {}};
    made.logit_slopes = {(*this)(step.logits), step.images, step.classes, step.stride, map(step.out)};
    return made;
  }

  cpu::Step operator()(const MeanRootStep& step) const {
    cpu::Step made = {step.wave, cpu::kMeanRootStep, {}};
    made.mean_root = {(*this)(step.x), (*this)(step.out), step.images, step.columns,
                      step.x_stride,   step.out_stride,   step.factor};
    return made;
  }

  cpu::Step operator()(const ScoreStep& step) const {
    cpu::Step made = {step.wave, cpu::kScoreStep, {}};
    made.score = {{(*this)(step.packed), step.images, step.stride, step.begins.data(), step.widths.data(),
                   step.inverse_area.data(), static_cast<int64_t>(step.widths.size()), (*this)(step.component), 2.0,
                   (*this)(step.out)},
                  step.component_stride,
                  step.out_stride};
    return made;
  }

  cpu::Step operator()(const ResultCheckStep& step) const {
    cpu::Step made = {step.wave, cpu::kResultCheckStep, {}};
    const std::array<int64_t, 6>& strides = step.strides;
    made.result_check = {
        {(*this)(step.logits), (*this)(step.score), (*this)(step.preconditions), (*this)(step.component),
         (*this)(step.finite), step.images, step.classes, step.precondition_count, strides[0], strides[1], strides[2],
         strides[3], strides[4], step.rounding},
        (*this)(step.out),
        strides[5]};
    return made;
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
    return with_callback(callback, threads,
                         [&](const cpu::HostCallback& called) { return run_unlocked(buffers, threads, called); });
  }

  // Steps made for one image, for each of several: `strides` are the bytes from image to image in each buffer, but for
  // the first, the arena: from thread to thread.
  bool run_images(const std::vector<uintptr_t>& buffers, const std::vector<int64_t>& strides, int64_t images,
                  int threads, const std::optional<py::function>& callback) const {
    require(!buffers.empty() && buffers.size() == strides.size(),
            std::to_string(strides.size()) + " strides for " + std::to_string(buffers.size()) + " buffers");
    require(images > 0, "an executable for " + std::to_string(images) + " images");
    return with_callback(callback, threads, [&](const cpu::HostCallback& called) {
      return run_images_unlocked(buffers, strides, images, threads, called);
    });
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

  template <class Run>
  static bool with_callback(const std::optional<py::function>& callback, int threads, Run run) {
    require(threads > 0, "an executable on " + std::to_string(threads) + " threads");
    Called called{callback, nullptr};
    const bool done = run({callback ? Called::call : nullptr, &called});
    if (called.error) std::rethrow_exception(called.error);
    return done;
  }

  void resolve(const std::vector<uintptr_t>& buffers, std::vector<cpu::Step>& steps) const {
    const Resolver resolver(buffers);
    steps.clear();
    for (const AnyStep& step : steps_) steps.push_back(std::visit(resolver, step));
  }

  bool run_unlocked(const std::vector<uintptr_t>& buffers, int threads, const cpu::HostCallback& callback) const {
    py::gil_scoped_release unlocked;
    std::vector<cpu::Step> steps;
    resolve(buffers, steps);
    return active_level().execute(steps.data(), static_cast<int64_t>(steps.size()), threads, callback);
  }

  bool run_images_unlocked(const std::vector<uintptr_t>& buffers, const std::vector<int64_t>& strides, int64_t images,
                           int threads, const cpu::HostCallback& callback) const {
    py::gil_scoped_release unlocked;
    const int team = static_cast<int>(std::min<int64_t>(threads, images));
    // An exception may not leave the parallel region: what throws, a buffer that is not there or memory, does so here.
    std::vector<std::vector<uintptr_t>> own(static_cast<size_t>(team), buffers);
    std::vector<std::vector<cpu::Step>> steps(static_cast<size_t>(team));
    for (std::vector<cpu::Step>& each : steps) resolve(buffers, each);
    const auto execute = active_level().execute;
    std::atomic<int64_t> next{0};
    std::atomic<bool> done{true};
#pragma omp parallel num_threads(team) if (team > 1)
    {
      const auto thread = static_cast<size_t>(omp_get_thread_num());
      if (thread == 0 && callback.run != nullptr) callback.run(callback.context);
      own[thread][0] += thread * static_cast<uintptr_t>(strides[0]);
      for (int64_t image = next++; image < images; image = next++) {
        for (size_t i = 1; i < buffers.size(); ++i)
          own[thread][i] = buffers[i] + static_cast<uintptr_t>(image * strides[i]);
        resolve(own[thread], steps[thread]);
        if (!execute(steps[thread].data(), static_cast<int64_t>(steps[thread].size()), 1, {nullptr, nullptr}))
          done = false;
      }
    }
    return done;
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
                                  py::arg("grouped") = static_cast<int>(cpu::kGrouped),
                                  py::arg("winograd_f4") = static_cast<int>(cpu::kWinogradF4));
  m.attr("STATISTICS") =
      py::dict(py::arg("sum") = static_cast<int>(cpu::kSum), py::arg("abs_sum") = static_cast<int>(cpu::kAbsSum),
               py::arg("positive") = static_cast<int>(cpu::kPositive));
  m.attr("ACTIVATIONS") =
      py::dict(py::arg("identity") = static_cast<int>(cpu::kIdentity), py::arg("relu") = static_cast<int>(cpu::kRelu),
               py::arg("sigmoid") = static_cast<int>(cpu::kSigmoid));
  m.attr("TESTS") = py::dict(py::arg("some_above") = static_cast<int>(cpu::kSomeAbove),
                             py::arg("all_above") = static_cast<int>(cpu::kAllAbove),
                             py::arg("all_finite") = static_cast<int>(cpu::kAllFinite));
  m.attr("POOLINGS") =
      py::dict(py::arg("maximum") = static_cast<int>(cpu::kMaximum), py::arg("mean") = static_cast<int>(cpu::kMean));

  py::class_<Epilogue>(m, "Epilogue")
      .def(py::init<Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer, int64_t, int64_t, int,
                    float, int>(),
           py::kw_only(), py::arg("y"), py::arg("bias") = kNull, py::arg("residual") = kNull,
           py::arg("relu_mask") = kNull, py::arg("scale") = kNull, py::arg("skip") = kNull, py::arg("sums") = kNull,
           py::arg("bits") = kNull, py::arg("sums_stride") = 0, py::arg("channels"),
           py::arg("activation") = static_cast<int>(cpu::kIdentity),
           py::arg("upper") = std::numeric_limits<float>::infinity(),
           py::arg("statistic") = static_cast<int>(cpu::kSum));
  py::class_<ConvolutionStep>(m, "ConvolutionStep")
      .def(py::init<int64_t, int, Pointer, const Sizes&, Pointer, int64_t, const Pair&, int64_t, int64_t, const Pair&,
                    const Pair&, const Pair&, const Pair&, const Pair&, const Pair&, const Pair&, const Epilogue&>(),
           py::kw_only(), py::arg("wave"), py::arg("algorithm"), py::arg("x"), py::arg("shape"), py::arg("packed"),
           py::arg("packed_size"), py::arg("out"), py::arg("outputs"), py::arg("group") = 0, py::arg("kernel"),
           py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("y_size"), py::arg("begin"),
           py::arg("step"), py::arg("epilogue"));
  py::class_<PointwiseStep>(m, "PointwiseStep")
      .def(py::init<int64_t, Pointer, const Sizes&, Pointer, int64_t, const Epilogue&>(), py::kw_only(),
           py::arg("wave"), py::arg("x"), py::arg("shape"), py::arg("factor"), py::arg("factor_stride") = 0,
           py::arg("epilogue"));
  py::class_<ChannelsLastStep>(m, "ChannelsLastStep")
      .def(py::init<int64_t, Pointer, const Sizes&, Pointer>(), py::kw_only(), py::arg("wave"), py::arg("x"),
           py::arg("shape"), py::arg("y"));
  py::class_<CheckStep>(m, "CheckStep")
      .def(py::init<int64_t, Pointer, const Sizes&, int64_t, int64_t, int64_t, int64_t, Pointer, int64_t, float, int>(),
           py::kw_only(), py::arg("wave"), py::arg("y"), py::arg("shape"), py::arg("begin"), py::arg("step"),
           py::arg("first"), py::arg("last"), py::arg("out"), py::arg("out_stride"), py::arg("bound") = 0.0f,
           py::arg("test") = static_cast<int>(cpu::kSomeAbove));
  py::class_<Windows>(m, "Windows")
      .def(py::init<const Sizes&, const Pair&, const Pair&, const Pair&, const Pair&, const Pair&>(), py::kw_only(),
           py::arg("shape"), py::arg("out"), py::arg("kernel"), py::arg("stride"), py::arg("padding"),
           py::arg("dilation"));
  py::class_<PoolStep>(m, "PoolStep")
      .def(
          py::init<int64_t, Pointer, Pointer, const Windows&, int, bool, int64_t, Pointer, Pointer, int64_t, int64_t>(),
          py::kw_only(), py::arg("wave"), py::arg("x"), py::arg("y"), py::arg("windows"), py::arg("kind"),
          py::arg("pad_zeros") = false, py::arg("divisor") = 0, py::arg("alive") = kNull, py::arg("counts") = kNull,
          py::arg("counts_stride") = 0, py::arg("channels"));
  py::class_<GroupNormStep>(m, "GroupNormStep")
      .def(
          py::init<int64_t, Pointer, Pointer, const Sizes&, int64_t, Pointer, Pointer, float, bool, Pointer, int64_t>(),
          py::kw_only(), py::arg("wave"), py::arg("x"), py::arg("y"), py::arg("shape"), py::arg("groups"),
          py::arg("scale"), py::arg("shift"), py::arg("epsilon"), py::arg("relu") = false, py::arg("sums") = kNull,
          py::arg("sums_stride") = 0);
  py::class_<MaskStep>(m, "MaskStep")
      .def(py::init<int64_t, const Windows&, Pointer, Pointer, Pointer, Pointer, int64_t, bool, int64_t, int64_t>(),
           py::kw_only(), py::arg("wave"), py::arg("windows"), py::arg("inner") = kNull, py::arg("outer") = kNull,
           py::arg("out") = kNull, py::arg("counts") = kNull, py::arg("group") = 1, py::arg("either") = false,
           py::arg("counts_stride") = 0, py::arg("channels"));
  py::class_<MaskCheckStep>(m, "MaskCheckStep")
      .def(py::init<int64_t, Pointer, const Sizes&, int64_t, int64_t, Pointer, int64_t>(), py::kw_only(),
           py::arg("wave"), py::arg("mask"), py::arg("shape"), py::arg("begin"), py::arg("step"), py::arg("out"),
           py::arg("out_stride"));
  py::class_<GateGradientStep>(m, "GateGradientStep")
      .def(py::init<int64_t, Pointer, Pointer, const Sizes&, Pointer, Pointer>(), py::kw_only(), py::arg("wave"),
           py::arg("g"), py::arg("y"), py::arg("shape"), py::arg("gate"), py::arg("out"));
  py::class_<MeanGradientStep>(m, "MeanGradientStep")
      .def(py::init<int64_t, Pointer, const Sizes&, Pointer, Pointer>(), py::kw_only(), py::arg("wave"), py::arg("x"),
           py::arg("shape"), py::arg("mean"), py::arg("y"));
  py::class_<CopyColumnsStep>(m, "CopyColumnsStep")
      .def(py::init<int64_t, Pointer, int64_t, int64_t, int64_t, Pointer, int64_t>(), py::kw_only(), py::arg("wave"),
           py::arg("x"), py::arg("x_stride"), py::arg("images"), py::arg("width"), py::arg("y"), py::arg("y_stride"));
  py::class_<LogitSlopesStep>(m, "LogitSlopesStep")
      .def(py::init<int64_t, Pointer, int64_t, int64_t, int64_t, Pointer>(), py::kw_only(), py::arg("wave"),
           py::arg("logits"), py::arg("stride"), py::arg("images"), py::arg("classes"), py::arg("out"));
  py::class_<MeanRootStep>(m, "MeanRootStep")
      .def(py::init<int64_t, Pointer, int64_t, int64_t, int64_t, float, Pointer, int64_t>(), py::kw_only(),
           py::arg("wave"), py::arg("x"), py::arg("x_stride"), py::arg("images"), py::arg("columns"), py::arg("factor"),
           py::arg("out"), py::arg("out_stride"));
  py::class_<ScoreStep>(m, "ScoreStep")
      .def(py::init<int64_t, Pointer, int64_t, int64_t, const std::vector<int64_t>&, const std::vector<double>&,
                    Pointer, int64_t, Pointer, int64_t>(),
           py::kw_only(), py::arg("wave"), py::arg("packed"), py::arg("stride"), py::arg("images"), py::arg("widths"),
           py::arg("inverse_area"), py::arg("component"), py::arg("component_stride"), py::arg("out"),
           py::arg("out_stride"));
  py::class_<ResultCheckStep>(m, "ResultCheckStep")
      .def(py::init<int64_t, int64_t, int64_t, int64_t, Pointer, Pointer, Pointer, Pointer, Pointer, Pointer,
                    const std::array<int64_t, 6>&, double>(),
           py::kw_only(), py::arg("wave"), py::arg("images"), py::arg("classes"), py::arg("precondition_count"),
           py::arg("logits"), py::arg("score"), py::arg("preconditions"), py::arg("component"), py::arg("finite"),
           py::arg("out"), py::arg("strides"), py::arg("rounding"));
  py::class_<Executable>(m, "Executable")
      .def(py::init<const py::list&>(), py::arg("steps"))
      .def("run", &Executable::run, py::arg("buffers"), py::arg("threads"), py::arg("callback") = py::none())
      .def("run_images", &Executable::run_images, py::arg("buffers"), py::arg("strides"), py::arg("images"),
           py::arg("threads"), py::arg("callback") = py::none());
}

}  // namespace gaia

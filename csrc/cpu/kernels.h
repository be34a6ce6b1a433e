// The CPU implementations behind one table per instruction-set level.
#pragma once

#include "maps.h"

namespace gaia::cpu {

enum Statistic { kSum = 0, kAbsSum = 1, kPositive = 2 };

// How weights are packed: in groups of so many panels, each of so many outputs; in a group for each position of the
// algorithm parts of so many inputs, in each the group's panels, in each the inputs. That is the order of use.
// Python reads them from the extension (gaia_fast/ops/convolution/packing.py).
constexpr int kPackedNr = 16;
constexpr int kPackedPanels = 4;
constexpr int64_t kPackedKc = 256;  // inputs that are summed in one chain

// How a convolution is computed: not at all, as a product with its windows where they lie, by Winograd's
// F(2 x 2, 3 x 3) or F(4 x 4, 3 x 3), or group by group.
enum Algorithm { kPointwise = 0, kIndirectGemm = 1, kWinogradF2 = 2, kGrouped = 3, kWinogradF4 = 4 };

enum Activation { kIdentity = 0, kRelu = 1, kSigmoid = 2 };

// A map in the order N, H, W, channels; `pitch` floats lie between two positions.
struct Map {
  float* data;
  int64_t pitch;
};

// A convolution and what stands behind it.
//   z = convolution of x with the packed weights + bias + residual
//   z = activation of z: min(max(z, 0), upper), or the sigmoid
//   z = 0 < relu_mask < upper ? z : 0
//   sums = sum over space of z, |z| or [0 < z < upper]
//   y = z * scale + skip
// Without weights (kPointwise), x * factor takes the convolution's place; without x, the factor. Channels are padded to
// whole panels: what lies behind the last of them is zero in every map that is read, and is written as zero.
struct Convolution {
  Map x;
  const float* packed;
  const float* bias;    // K of them, or null
  Map residual;         // added; or null
  Map relu_mask;        // or null
  const float* factor;  // K of them, or null, `factor_stride` floats from image to image; for kPointwise
  const float* scale;   // K of them, or null
  Map skip;             // or null
  Map y;
  float* sums;  // (N, K), rows `sums_stride` apart, or null; shared by the steps of a wave that make one map together
  int64_t n, h, w, c;
  int64_t out_h, out_w, k;                                                               // k padded to a multiple of 16
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;  // pads may be negative
  // Output (i, j) is position (begin_h + i * step_h, begin_w + j * step_w) of y; not for Winograd.
  int64_t y_h, y_w, begin_h, begin_w, step_h, step_w;
  int64_t sums_stride;
  int64_t channels;  // k without what it is padded by
  int64_t factor_stride;
  int64_t group;        // channels of a group, in and out, for kGrouped: a divisor or a multiple of 16
  Algorithm algorithm;  // Winograd needs c a multiple of 16
  Activation activation;
  float upper;  // infinite where there is no bound
  Statistic statistic;
  uint16_t* bits;  // [0 < z < upper], see Mask; or null
};

// Windows over a map, whose outputs are y.
struct Windows {
  int64_t n, h, w, k;  // k a multiple of 16
  int64_t out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

enum PoolKind { kMaximum = 0, kMean = 1 };

// y = the maximum or the mean of each window of x. Outside of x lies nothing, or, with `pad_zeros`, zeros; `divisor` is
// what a mean divides by, 0 for the number of positions that are inside.
struct Pool {
  Map x, y;
  Windows windows;
  PoolKind kind;
  bool pad_zeros;
  int64_t divisor;
  // Of a maximum: counts[n * counts_stride + k] = the positions of x that are positive and the first maximum of a
  // window with a bit in `alive` (all windows without); or null.
  const uint16_t* alive;
  float* counts;
  int64_t counts_stride, counts_k;
};

// y = (x - mean) / sqrt(variance + epsilon) * scale + shift, over the positions and the channels of each group of an
// image; then its ReLU, if asked for. sums: of [y > 0] over space, or null.
struct GroupNorm {
  Map x, y;
  int64_t n, area, k, groups;  // k a multiple of 16 and of groups
  const float* scale;          // K of them
  const float* shift;
  float epsilon;
  bool relu;
  float* sums;
  int64_t sums_stride;
};

// out = gate * (1 - gate) * the sum over space of g * y, for each channel of each image: of the product y * gate, with
// the gradient g, the gradient of what the gate is the sigmoid of.
struct GateGradient {
  Map g, y;
  Map gate, out;       // of one position
  int64_t n, area, k;  // k a multiple of 16
};

// y = x + mean / area: to the gradient x of a map, that of its mean over space is added.
struct MeanGradient {
  Map x, y;
  Map mean;            // of one position
  int64_t n, area, k;  // k a multiple of 16
};

// Words between the planes of two panels in the mask of a map with so many positions.
inline int64_t mask_plane(int64_t positions) { return (positions + 1) / 2 * 2; }

// Bits of a map, one a channel, 16 of them a word: those of channels 16 p to 16 p + 15 at position i of all images' are
// word p * mask_plane(n * h * w) + i.
// m = inner, and of these (with `either`, besides these) the entries of which a window has a bit in `outer`; where
// channels are in groups of `group`, a bit of the same group. Without `outer`, m = inner.
struct Mask {
  const uint16_t* inner;  // or null for all
  const uint16_t* outer;  // or null
  Windows windows;
  int64_t group;
  bool either;
  uint16_t* out;  // or null
  float* counts;  // of the bits of each channel, or null
  int64_t counts_stride, counts_k;
};

// Of the channels at a position: whether some is above a bound, every one is, or every one is finite.
enum Test { kSomeAbove = 0, kAllAbove = 1, kAllFinite = 2 };

// out[i * out_stride] = 1 where the channels from `first` to `last` pass the test at each position of y (n, h, w, k)
// from `begin` on in `step`s, on both axes.
struct ActiveEverywhere {
  Map y;
  float* out;
  int64_t n, h, w;
  int64_t begin, step;
  int64_t first, last;
  int64_t out_stride;
  float bound;
  Test test;
};

// out[i * out_stride] = 1 where of each position from `begin` on in `step`s, on both axes, some channel has a bit.
struct MaskCheck {
  const uint16_t* mask;
  float* out;
  int64_t n, h, w, k;
  int64_t begin, step;
  int64_t out_stride;
};

// y = x, whose channels lie one after the other; y's channels from c to its pitch are zero.
struct ChannelsLast {
  const float* x;  // (N, C, area)
  Map y;
  int64_t n, c, area;
};

// to[i * to_stride + j] = from[i * from_stride + j] for j below `width`.
struct CopyColumns {
  const float* from;
  float* to;
  int64_t n, width, from_stride, to_stride;
};

// The gradient of the sum of log_softmax(S) towards the logits S, as maps of one position: 1 - C softmax(S).
struct LogitSlopes {
  const float* logits;
  int64_t n, classes, logits_stride;
  Map out;  // channels from `classes` to its pitch are zero
};

// out[i * out_stride] = sqrt(factor * mean of the k numbers of row i).
struct MeanRoot {
  const float* x;
  float* out;
  int64_t n, k, x_stride, out_stride;
  float factor;
};

// The score of an image: see `frobenius`; from image to image so many floats.
struct Score {
  gaia_packed packed;
  int64_t component_stride, score_stride;
};

// What a program found for n images, `..._stride` floats from image to image. What is null is not looked at.
struct Results {
  const float* logits;
  const float* score;
  const float* preconditions;
  const float* component;
  const float* finite;  // whether an image is
  int64_t n, classes, precondition_count;
  int64_t logits_stride, score_stride, preconditions_stride, component_stride, finite_stride;
  double rounding;  // the largest |1 - C softmax(S)| that is rounding alone
};

// out[i * out_stride] = 1 where the results of image i hold: see `results_hold`.
struct ResultCheck {
  Results results;
  float* out;
  int64_t out_stride;
};

enum StepKind {
  kChannelsLastStep,
  kConvolutionStep,
  kCheckStep,
  kPoolStep,
  kGroupNormStep,
  kMaskStep,
  kMaskCheckStep,
  kGateGradientStep,
  kMeanGradientStep,
  kCopyColumnsStep,
  kLogitSlopesStep,
  kMeanRootStep,
  kScoreStep,
  kResultCheckStep
};

// One step of an executable. Those of one wave (numbered from 0 on, in order) do not need each other. No std::variant:
// what level.cpp includes may not use standard templates.
struct Step {
  int64_t wave;
  StepKind kind;
  union {
    Convolution convolution;  // first: the largest, which `{}` sets to zero
    ChannelsLast channels_last;
    ActiveEverywhere active;
    Pool pool;
    GroupNorm norm;
    Mask mask;
    MaskCheck mask_check;
    GateGradient gate_gradient;
    MeanGradient mean_gradient;
    CopyColumns copy_columns;
    LogitSlopes logit_slopes;
    MeanRoot mean_root;
    Score score;
    ResultCheck result_check;
  };
};

// What the calling thread does first, while the others wake up and begin. Must not throw.
struct HostCallback {
  void (*run)(void* context);  // or null
  void* context;
};

struct KernelTable {
  const char* level;
  // Reads g once and writes its moments.
  void (*channel_moments)(const gaia_map& g, const gaia_moments& out, int threads);
  // Writes grad_in = where(y <= 0, 0, g) * scale and the moments of where(y <= 0, 0, g). Without a y nothing is
  // masked; scale has K values or is null. The maps share shape and dtype, not strides.
  void (*relu_backward_moments)(const gaia_map& g, const gaia_map* y, const float* scale, const gaia_map& grad_in,
                                const gaia_moments& out, int threads);
  // Runs steps, wave after wave. False where memory is short.
  bool (*execute)(const Step* steps, int64_t count, int threads, const HostCallback& callback);
  // Writes y = relu(x * scale + shift + residual) and counts its non-zeros; scale and shift have K values or are null.
  void (*relu_forward_count)(const gaia_map& x, const gaia_map* residual, const float* scale, const float* shift,
                             const gaia_map& y, const gaia_moments& out, int threads);
};

// Defined once per level, by compiling level.cpp with that level's flags.
const KernelTable& baseline_table();
#ifdef GAIA_X86_LEVELS
const KernelTable& v3_table();
const KernelTable& v4_table();
#endif

// The levels that this processor runs, best first; the array ends with null.
const KernelTable* const* supported_tables();
// The names of all that were built, best first; ends with nullptr.
const char* const* built_levels();

void frobenius(const gaia_packed& packed);

void active_everywhere(const ActiveEverywhere& job);

bool all_finite(const float* x, int64_t count);

bool all_positive(const float* x, int64_t count);

// Whether images, logits and scores are finite, all preconditions are positive, and each component can be divided by.
bool results_hold(const Results& found);

}  // namespace gaia::cpu

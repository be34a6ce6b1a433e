// The CPU kernels of the baseline level against plain loops in double, without Python: for processors that are only
// emulated where this is tested (tests/ops/test_other_processors.py). Prints what is wrong, and returns how much.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/kernels.h"

using namespace gaia::cpu;

namespace {

using Floats = std::vector<float>;

int failures = 0;

void check(bool good, const char* what, const char* of) {
  if (good) return;
  ++failures;
  std::printf("wrong: %s of %s\n", what, of);
}

Floats noise(int64_t size) {
  Floats found(static_cast<size_t>(size));
  for (auto& each : found) each = static_cast<float>(std::rand()) / static_cast<float>(RAND_MAX) * 2 - 1;
  return found;
}

struct Case {
  const char* name;
  int64_t n, h, w, c, k, kernel, stride, pad, dilation, group;  // group 0 for one group
};

const Case kCases[] = {
    {"a 1x1 convolution", 2, 7, 7, 48, 80, 1, 1, 0, 1, 0},
    {"a 3x3 convolution", 1, 9, 8, 32, 64, 3, 1, 1, 1, 0},
    {"a strided convolution", 2, 11, 9, 16, 16, 3, 2, 1, 1, 0},
    {"a dilated convolution", 1, 9, 9, 16, 48, 3, 1, 2, 2, 0},
    {"a stem", 1, 20, 20, 3, 64, 7, 2, 3, 1, 0},
    {"many inputs", 1, 5, 5, 320, 112, 1, 1, 0, 1, 0},
    {"a depthwise convolution", 2, 9, 7, 32, 32, 3, 1, 1, 1, 1},
    {"a strided depthwise convolution", 1, 12, 12, 16, 16, 5, 2, 2, 1, 1},
    {"a convolution in groups of 8", 1, 6, 6, 32, 32, 3, 1, 1, 1, 8},
    {"a convolution in groups of 16", 1, 6, 6, 32, 32, 3, 1, 1, 1, 16},
};

// As Python packs them: groups of panels, in each parts of the depth, in each the panels, in each the inputs.
Floats packed(const Floats& weights, int64_t depth, int64_t k) {
  Floats found;
  const int64_t panels = k / kPackedNr;
  for (int64_t group = 0; group < panels; group += kPackedPanels) {
    for (int64_t part = 0; part < depth; part += kPackedKc) {
      for (int64_t panel = group; panel < panels && panel < group + kPackedPanels; ++panel) {
        for (int64_t d = part; d < depth && d < part + kPackedKc; ++d) {
          for (int64_t j = 0; j < kPackedNr; ++j)
            found.push_back(weights[static_cast<size_t>((panel * kPackedNr + j) * depth + d)]);
        }
      }
    }
  }
  return found;
}

void convolution(const Case& of, int threads) {
  const int64_t out_h = (of.h + 2 * of.pad - of.dilation * (of.kernel - 1) - 1) / of.stride + 1;
  const int64_t out_w = (of.w + 2 * of.pad - of.dilation * (of.kernel - 1) - 1) / of.stride + 1;
  const int64_t inputs = of.group > 0 ? of.group : of.c, taps = of.kernel * of.kernel, depth = taps * inputs;
  const int64_t positions = of.n * out_h * out_w;
  Floats x = noise(of.n * of.h * of.w * of.c), weights = noise(of.k * depth), bias = noise(of.k);
  Floats residual = noise(positions * of.k), y(static_cast<size_t>(positions * of.k), -7.0f);
  Floats counts(static_cast<size_t>(of.n * of.k), -7.0f);
  std::vector<uint16_t> bits(static_cast<size_t>(of.k / kPackedNr * mask_plane(positions)));
  // Of groups, the inputs of a tap lie in rows of a panel.
  const Floats used = of.group > 0 ? [&] {
    Floats found;
    for (int64_t panel = 0; panel < of.k / kPackedNr; ++panel)
      for (int64_t d = 0; d < depth; ++d)
        for (int64_t j = 0; j < kPackedNr; ++j)
          found.push_back(weights[static_cast<size_t>((panel * kPackedNr + j) * depth + d)]);
    return found;
  }()
                                   : packed(weights, depth, of.k);

  Step step = {};
  step.kind = kConvolutionStep;
  Convolution& job = step.convolution;
  job = {};
  job.x = {x.data(), of.c};
  job.packed = used.data();
  job.bias = bias.data();
  job.residual = {residual.data(), of.k};
  job.y = {y.data(), of.k};
  job.sums = counts.data(), job.sums_stride = of.k;
  job.n = of.n, job.h = of.h, job.w = of.w, job.c = of.c;
  job.out_h = job.y_h = out_h, job.out_w = job.y_w = out_w, job.k = job.channels = of.k;
  job.kernel_h = job.kernel_w = of.kernel, job.stride_h = job.stride_w = of.stride;
  job.pad_h = job.pad_w = of.pad, job.dilation_h = job.dilation_w = of.dilation;
  job.step_h = job.step_w = 1;
  job.group = of.group;
  job.algorithm = of.group > 0 ? kGrouped : kIndirectGemm;
  job.activation = kRelu;
  job.upper = INFINITY;
  job.statistic = kPositive;
  job.bits = bits.data();
  check(baseline_table().execute(&step, 1, threads, {}), "memory", of.name);

  Floats expected_counts(counts.size(), 0.0f);
  double worst = 0;
  bool same_bits = true;
  for (int64_t n = 0; n < of.n; ++n) {
    for (int64_t i = 0; i < out_h; ++i) {
      for (int64_t j = 0; j < out_w; ++j) {
        const int64_t position = (n * out_h + i) * out_w + j;
        for (int64_t k = 0; k < of.k; ++k) {
          double sum = bias[static_cast<size_t>(k)] + residual[static_cast<size_t>(position * of.k + k)];
          for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t row = i * of.stride - of.pad + tap / of.kernel * of.dilation;
            const int64_t column = j * of.stride - of.pad + tap % of.kernel * of.dilation;
            if (row < 0 || row >= of.h || column < 0 || column >= of.w) continue;
            const int64_t first = of.group > 0 ? k / of.group * of.group : 0;
            for (int64_t c = 0; c < inputs; ++c)
              sum +=
                  static_cast<double>(x[static_cast<size_t>(((n * of.h + row) * of.w + column) * of.c + first + c)]) *
                  static_cast<double>(weights[static_cast<size_t>(k * depth + tap * inputs + c)]);
          }
          const float found = y[static_cast<size_t>(position * of.k + k)];
          worst = std::fmax(worst, std::fabs(found - (sum > 0 ? sum : 0)));
          const bool bit =
              bits[static_cast<size_t>(k / kPackedNr * mask_plane(positions) + position)] >> (k % kPackedNr) & 1;
          same_bits = same_bits && bit == (found > 0);
          expected_counts[static_cast<size_t>(n * of.k + k)] += found > 0 ? 1.0f : 0.0f;
        }
      }
    }
  }
  check(worst <= 1e-6 * static_cast<double>(depth + 2), "outputs", of.name);
  check(same_bits, "bits", of.name);
  check(counts == expected_counts, "counts", of.name);
}

void moments(int64_t n, int64_t k, int64_t area, int threads) {
  Floats g = noise(n * k * area);
  for (size_t i = 0; i < g.size(); i += 3) g[i] = i % 2 ? 0.0f : -0.0f;
  Floats found(static_cast<size_t>(3 * n * k), -7.0f);
  const gaia_map map = {g.data(), GAIA_FLOAT32, n, k, 1, area, k * area, area, area, 1};
  const gaia_moments out = {found.data(), found.data() + n * k, found.data() + 2 * n * k, k};
  baseline_table().channel_moments(map, out, threads);
  for (int64_t row = 0; row < n * k; ++row) {
    double sum = 0, absolute = 0, nonzero = 0;
    for (int64_t i = 0; i < area; ++i) {
      const float each = g[static_cast<size_t>(row * area + i)];
      sum += each, absolute += std::fabs(each), nonzero += each != 0;
    }
    const double allowed = 1e-6 * static_cast<double>(area);
    check(std::fabs(sum - found[static_cast<size_t>(row)]) <= allowed, "the sum", "channel_moments");
    check(std::fabs(absolute - found[static_cast<size_t>(n * k + row)]) <= allowed, "the absolute sum",
          "channel_moments");
    check(nonzero == found[static_cast<size_t>(2 * n * k + row)], "the count", "channel_moments");
  }
}

// Subnormals are kept whatever mode the caller is in.
void subnormals() {
  Floats g(64, 1e-40f), found(3, -7.0f);
  const gaia_map map = {g.data(), GAIA_FLOAT32, 1, 1, 8, 8, 64, 64, 8, 1};
  baseline_table().channel_moments(map, {found.data(), found.data() + 1, found.data() + 2, 1}, 1);
  check(found[0] > 0 && found[1] > 0 && found[2] == 64.0f, "subnormals", "channel_moments");
}

}  // namespace

int main() {
  for (const Case& each : kCases) {
    for (int threads = 1; threads <= 2; ++threads) convolution(each, threads);
  }
  moments(2, 5, 49, 1);
  moments(1, 3, 1030, 2);
  subnormals();
  std::printf("%s: %d wrong\n", baseline_table().level, failures);
  return failures == 0 ? 0 : 1;
}

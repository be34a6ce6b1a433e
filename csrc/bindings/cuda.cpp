// The CUDA kernels, where they were built.
#include "bindings/bindings.h"

#ifdef GAIA_CUDA

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "cuda/result_checks.h"

namespace gaia {

namespace {

// What `Tiling` holds, as the Python side knows it: layout, vector, block_k, chunk, splits, piece, partial, tickets.
gaia::cuda::Tiling make_tiling(const std::array<int64_t, 8>& t) {
  return {static_cast<gaia::cuda::Layout>(t[0]),
          static_cast<int>(t[1]),
          static_cast<int>(t[2]),
          t[3],
          t[4],
          static_cast<int>(t[5]),
          reinterpret_cast<float*>(t[6]),
          reinterpret_cast<unsigned*>(t[7])};
}

void check_launch(const std::string& error, const Sizes& shape) {
  if (error.empty()) return;
  std::string text = " on a map of shape (";
  for (size_t i = 0; i < shape.size(); ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  throw std::runtime_error("CUDA kernel " + error + text + ")");
}

// Address, dtype, columns, and the strides of images and columns.
gaia::cuda::Matrix make_matrix(const std::array<int64_t, 5>& m) {
  return {reinterpret_cast<const void*>(m[0]), static_cast<gaia_dtype>(m[1]), m[2], m[3], m[4]};
}

gaia::cuda::Stream to_stream(uintptr_t stream) { return reinterpret_cast<gaia::cuda::Stream>(stream); }

}  // namespace

void define_cuda(py::module_& m) {
  m.def("cuda_build", [] { return std::string(gaia::cuda::build()); });
  m.def("cuda_obstacle", gaia::cuda::obstacle, py::arg("device"));
  const gaia::cuda::CountAndScoreLimits limits = gaia::cuda::count_and_score_limits();
  m.attr("CUDA_COUNT_AND_SCORE_LIMITS") =
      py::dict(py::arg("maps") = limits.maps, py::arg("sums") = limits.sums, py::arg("layers") = limits.layers,
               py::arg("windows") = limits.windows);
  m.attr("CUDA_LAYOUTS") = py::dict(py::arg("rows") = static_cast<int>(cuda::Layout::kRows),
                                    py::arg("channels") = static_cast<int>(cuda::Layout::kChannels),
                                    py::arg("strided") = static_cast<int>(cuda::Layout::kStrided));

  m.def("cuda_channel_moments",
        [](uintptr_t g, int dtype, Sizes shape, Sizes strides, uintptr_t out, int64_t stride_moment, int64_t stride_n,
           std::array<int64_t, 8> tiling, int device, uintptr_t stream) {
          py::gil_scoped_release unlocked;
          check_launch(gaia::cuda::channel_moments(make_map(g, dtype, shape, strides),
                                                   make_moments(out, stride_moment, stride_n), make_tiling(tiling),
                                                   device, to_stream(stream)),
                       shape);
        });

  m.def("cuda_relu_backward_moments",
        [](uintptr_t g, uintptr_t y, uintptr_t scale, uintptr_t grad_in, int dtype, Sizes shape, Sizes g_strides,
           Sizes y_strides, Sizes grad_in_strides, uintptr_t out, int64_t stride_moment, int64_t stride_n,
           std::array<int64_t, 8> tiling, int device, uintptr_t stream) {
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
                                      uintptr_t nonzero, int64_t stride_n, std::array<int64_t, 8> tiling, int device,
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

  m.def("cuda_copy_and_check", [](uintptr_t x, uintptr_t out, uintptr_t finite, int dtype, Sizes shape, Sizes strides,
                                  int64_t part, int64_t parts, bool whole, int device, uintptr_t stream) {
    py::gil_scoped_release unlocked;
    check_launch(gaia::cuda::copy_and_check({make_map(x, dtype, shape, strides), reinterpret_cast<void*>(out),
                                             reinterpret_cast<uint8_t*>(finite), part, parts, whole},
                                            device, to_stream(stream)),
                 shape);
  });

  m.def("cuda_check_results",
        [](int64_t n, std::array<int64_t, 5> logits, std::array<int64_t, 5> preconditions,
           const std::vector<std::array<int64_t, 5>>& scores, const std::vector<std::array<int64_t, 5>>& components,
           double rounding, uintptr_t finite, int64_t finite_count, int64_t finite_stride, uintptr_t pieces,
           int64_t piece_count, uintptr_t expected, uintptr_t answers, uintptr_t counts, uintptr_t told, int device,
           uintptr_t stream) {
          py::gil_scoped_release unlocked;
          gaia::cuda::ResultChecks checks = {};
          checks.n = n;
          checks.logits = make_matrix(logits);
          checks.preconditions = make_matrix(preconditions);
          const size_t most = gaia::cuda::kMostColumns;
          if (scores.size() > most || components.size() > most)
            throw std::runtime_error("check_results: too many scores");
          for (size_t i = 0; i < scores.size(); ++i) checks.scores[i] = make_matrix(scores[i]);
          for (size_t i = 0; i < components.size(); ++i) checks.components[i] = make_matrix(components[i]);
          checks.score_count = static_cast<int>(scores.size());
          checks.component_count = static_cast<int>(components.size());
          checks.rounding = rounding;
          checks.finite = reinterpret_cast<const uint8_t*>(finite);
          checks.finite_count = finite_count;
          checks.finite_stride = finite_stride;
          checks.pieces = reinterpret_cast<const int64_t*>(pieces);
          checks.piece_count = piece_count;
          checks.expected = reinterpret_cast<const uint8_t*>(expected);
          checks.answers = reinterpret_cast<uint8_t*>(answers);
          checks.counts = reinterpret_cast<int64_t*>(counts);
          checks.told = reinterpret_cast<int64_t*>(told);
          check_launch(gaia::cuda::check_results(checks, device, to_stream(stream)), {n, logits[2], 1, 1});
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

  // Of each map its address, shape (k, h, w), strides and the largest bits that are active; of each sum its address,
  // width and strides.
  m.def("cuda_count_and_score", [](const std::vector<uintptr_t>& map_data,
                                   const std::vector<std::array<int64_t, 8>>& maps,
                                   const std::vector<uintptr_t>& sum_data,
                                   const std::vector<std::array<int64_t, 3>>& sums, const std::vector<int64_t>& layers,
                                   const std::vector<double>& inverse_area, const std::vector<int64_t>& windows,
                                   int dtype, int64_t n, double p, uintptr_t scratch, int64_t scratch_size,
                                   uintptr_t packed, uintptr_t live, uintptr_t score, int device, uintptr_t stream) {
    py::gil_scoped_release unlocked;
    gaia::cuda::CountAndScore problem;
    for (size_t i = 0; i < maps.size(); ++i) {
      const auto& [k, h, w, stride_n, stride_k, stride_h, stride_w, limit] = maps[i];
      problem.maps.push_back({make_map(map_data.at(i), dtype, {n, k, h, w}, {stride_n, stride_k, stride_h, stride_w}),
                              static_cast<unsigned>(limit)});
    }
    for (size_t i = 0; i < sums.size(); ++i) {
      const auto& [k, stride_n, stride_k] = sums[i];
      problem.sums.push_back({reinterpret_cast<const float*>(sum_data.at(i)), k, stride_n, stride_k});
    }
    for (size_t i = 0; i + 2 < windows.size(); i += 3) {
      problem.windows.push_back({windows[i], windows[i + 1], windows[i + 2]});
    }
    problem.layers = layers;
    problem.inverse_area = inverse_area;
    problem.dtype = static_cast<gaia_dtype>(dtype);
    problem.n = n;
    problem.p = p;
    problem.scratch = reinterpret_cast<int*>(scratch);
    problem.scratch_size = scratch_size;
    problem.packed = reinterpret_cast<float*>(packed);
    problem.live = reinterpret_cast<float*>(live);
    problem.score = reinterpret_cast<float*>(score);
    const std::string error = gaia::cuda::count_and_score(problem, device, to_stream(stream));
    if (!error.empty()) {
      throw std::runtime_error("CUDA kernel " + error + " on " + std::to_string(maps.size()) + " maps of " +
                               std::to_string(n) + " images");
    }
  });
}

}  // namespace gaia

#else

namespace gaia {

void define_cuda(py::module_& m) {
  m.def("cuda_build", [] { return std::string(); });
}

}  // namespace gaia

#endif

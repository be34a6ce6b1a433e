// The CPU kernels that are called one by one.
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/level.h"
#include "cpu/kernels.h"

namespace gaia {

void define_maps(py::module_& m) {
  m.def("channel_moments", [](uintptr_t g, int dtype, Sizes shape, Sizes strides, uintptr_t out, int64_t stride_moment,
                              int64_t stride_n, int threads) {
    py::gil_scoped_release unlocked;
    active_level().channel_moments(make_map(g, dtype, shape, strides), make_moments(out, stride_moment, stride_n),
                                   threads);
  });

  m.def("relu_backward_moments", [](uintptr_t g, uintptr_t y, uintptr_t scale, uintptr_t grad_in, int dtype,
                                    Sizes shape, Sizes g_strides, Sizes y_strides, Sizes grad_in_strides, uintptr_t out,
                                    int64_t stride_moment, int64_t stride_n, int threads) {
    py::gil_scoped_release unlocked;
    const gaia_map y_map = make_map(y, dtype, shape, y_strides);
    active_level().relu_backward_moments(
        make_map(g, dtype, shape, g_strides), y != 0 ? &y_map : nullptr, reinterpret_cast<const float*>(scale),
        make_map(grad_in, dtype, shape, grad_in_strides), make_moments(out, stride_moment, stride_n), threads);
  });

  m.def("relu_forward_count", [](uintptr_t x, uintptr_t residual, uintptr_t scale, uintptr_t shift, uintptr_t y,
                                 int dtype, Sizes shape, Sizes x_strides, Sizes residual_strides, Sizes y_strides,
                                 uintptr_t nonzero, int threads) {
    py::gil_scoped_release unlocked;
    const gaia_map residual_map = make_map(residual, dtype, shape, residual_strides);
    const gaia_moments counts = {nullptr, nullptr, reinterpret_cast<float*>(nonzero), shape[1]};
    active_level().relu_forward_count(make_map(x, dtype, shape, x_strides), residual != 0 ? &residual_map : nullptr,
                                      reinterpret_cast<const float*>(scale), reinterpret_cast<const float*>(shift),
                                      make_map(y, dtype, shape, y_strides), counts, threads);
  });

  m.def("active_everywhere",
        [](uintptr_t y, Sizes shape, std::array<int64_t, 2> grid, std::array<int64_t, 2> channels, uintptr_t out) {
          py::gil_scoped_release unlocked;
          gaia::cpu::active_everywhere({{reinterpret_cast<float*>(y), shape[3]},
                                        reinterpret_cast<float*>(out),
                                        shape[0],
                                        shape[1],
                                        shape[2],
                                        grid[0],
                                        grid[1],
                                        channels[0],
                                        channels[1],
                                        1,
                                        0.0f,
                                        gaia::cpu::kSomeAbove});
        });

  m.def("all_positive",
        [](uintptr_t x, int64_t count) { return gaia::cpu::all_positive(reinterpret_cast<const float*>(x), count); });

  m.def("all_finite", [](uintptr_t x, int64_t count) {
    py::gil_scoped_release unlocked;
    return gaia::cpu::all_finite(reinterpret_cast<const float*>(x), count);
  });

  m.def("results_hold", [](uintptr_t logits, int64_t n, int64_t classes, uintptr_t score, uintptr_t preconditions,
                           int64_t precondition_count, uintptr_t component, double rounding) {
    return gaia::cpu::results_hold({reinterpret_cast<const float*>(logits), reinterpret_cast<const float*>(score),
                                    reinterpret_cast<const float*>(preconditions),
                                    reinterpret_cast<const float*>(component), nullptr, n, classes, precondition_count,
                                    classes, 1, precondition_count, 1, 0, rounding});
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

}  // namespace gaia

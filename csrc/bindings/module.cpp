// The Python module gaia_fast._kernels; its types are in gaia_fast/_kernels.pyi.
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/level.h"
#include "cpu/kernels.h"

namespace py = pybind11;

PYBIND11_MODULE(_kernels, m) {
  m.doc() = "The C++ and CUDA kernels of gaia_fast on raw pointers; use gaia_fast.ops instead.";
  gaia::active_level();  // a level that was asked for and does not run here fails the import

  m.def("cpu_levels", [] {
    std::vector<std::string> levels;
    for (auto table = gaia::cpu::supported_tables(); *table != nullptr; ++table) levels.push_back((*table)->level);
    return levels;
  });
  m.def("built_cpu_levels", [] {
    std::vector<std::string> levels;
    for (auto level = gaia::cpu::built_levels(); *level != nullptr; ++level) levels.push_back(*level);
    return levels;
  });
  m.def("cpu_level", [] { return std::string(gaia::active_level().level); });
  m.def("set_cpu_level", gaia::set_active_level);
  m.attr("DTYPES") =
      py::dict(py::arg("float32") = static_cast<int>(GAIA_FLOAT32), py::arg("float16") = static_cast<int>(GAIA_FLOAT16),
               py::arg("bfloat16") = static_cast<int>(GAIA_BFLOAT16));

  gaia::define_maps(m);
  gaia::define_executor(m);
  gaia::define_guards(m);
  gaia::define_cuda(m);
}

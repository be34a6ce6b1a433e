// What the files of this folder share. Pointers, sizes and strides in, nothing of torch: arguments are checked by the
// Python callers in gaia_fast/ops; the interpreter lock is released while a kernel runs.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "maps.h"

namespace gaia {

namespace py = pybind11;

// (n, k, h, w), or strides in elements, as the Python side knows them.
using Sizes = std::array<int64_t, 4>;

inline gaia_map make_map(uintptr_t data, int dtype, const Sizes& shape, const Sizes& strides) {
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

inline gaia_moments make_moments(uintptr_t data, int64_t stride_moment, int64_t stride_n) {
  float* const first = reinterpret_cast<float*>(data);
  return {first, first + stride_moment, first + 2 * stride_moment, stride_n};
}

void define_maps(py::module_& m);      // one function a kernel, on the level in use
void define_executor(py::module_& m);  // steps, and executables made of them
void define_guards(py::module_& m);    // whether Python objects and tensors' memory are what they were
void define_cuda(py::module_& m);

}  // namespace gaia

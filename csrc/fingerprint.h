// Whether Python objects and the memory of tensors still are what they were: gaia_fast/fingerprint.py, made fast.
#pragma once
#include <pybind11/pybind11.h>

namespace gaia {

void define_fingerprint(pybind11::module_& m);

}  // namespace gaia

// Slices of a gradient from several ranks, and the norm's sums of one, as Python hands them in.
#pragma once
#include <pybind11/pybind11.h>

#include "array.hpp"

namespace thalweg {

namespace py = pybind11;

// Dense arrays of one dtype and size; `out` may be one of the slices, or meet none.
void add_in_order(const py::object& out, const py::tuple& slices, const Level& level);

// One float64 for each block of a dense array.
py::object block_sums(const py::object& values, const Level& level);

} // namespace thalweg

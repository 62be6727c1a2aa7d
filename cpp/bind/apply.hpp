// The kernels without an object: one update of each param with its gradient and state. The general
// way; functional.hpp has the short one.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "kernel/contract.hpp"

namespace thalweg {

namespace py = pybind11;

// numbered: the arrays are called param["0"], param["1"], ... in messages; else param.
// norm: None, or a float64 array of one element in which the norm is left. Returns what a step
// does.
bool apply(const std::string& kernel, const py::tuple& params, const py::tuple& grads,
           const py::object& states, const char* state_name, const py::dict& options, bool numbered,
           const py::object& norm, const Level& level);

} // namespace thalweg

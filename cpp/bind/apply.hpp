// The kernels without an object: one update of each param with its gradient and state.
#pragma once
#include <pybind11/pybind11.h>

#include <string>

#include "kernel/contract.hpp"

namespace thalweg {

namespace py = pybind11;

// numbered: the arrays are called param["0"], param["1"], ... in messages; else param.
void apply(const std::string& kernel, const py::tuple& params, const py::tuple& grads,
           const py::object& states, const char* state_name, const py::dict& options, bool numbered,
           const Level& level);

} // namespace thalweg

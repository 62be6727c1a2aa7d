// The C++ object behind one of pybind11's.
#pragma once
#include <pybind11/pybind11.h>

namespace thalweg {

namespace py = pybind11;

// The instance's own pointer where its layout is the usual one: the cast costs as much as a step.
// Not before the type of `self` is known to be right.
template <class T> T& instance_of(PyObject* self) {
    const auto* instance = reinterpret_cast<py::detail::instance*>(self);
    if (instance->simple_layout && instance->simple_value_holder[0])
        return *static_cast<T*>(instance->simple_value_holder[0]);
    return py::handle(self).cast<T&>();
}

} // namespace thalweg

// NumPy arrays as the core sees them: what may be a param, a state buffer or a gradient, and the
// words in which anything else is refused.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "first_use.hpp"
#include "kernel/contract.hpp"
#include "thread/zeros.hpp"

namespace thalweg {

namespace py = pybind11;

// The pairs of a dict, held: whoever reads them may run code that changes the dict.
inline py::tuple entries(py::handle dict) {
    return py::tuple(py::reinterpret_steal<py::object>(PyDict_Items(dict.ptr())));
}

// NumPy's own fields, without its headers.
inline const py::detail::PyArray_Proxy& fields(PyObject* array) {
    return *py::detail::array_proxy(array);
}

// ("params", "W1") -> params["W1"];  ("params", "") -> params
std::string label(const char* what, const std::string& path);

// The same, put together only when a message needs it.
struct Label {
    const char* what;
    const std::string& path;
    const char* part = ""; // .rows
    std::string text() const { return label(what, path) + part; }
};

// (3, 4) as Python writes it.
std::string shape_text(PyObject* array);

// What the value is, for the end of a message: "int64 array", "list", "None".
std::string received(PyObject* value);

// By its type, never by what its __class__ says: between the checks of a step and its writes no
// code of the caller's may run.
bool is_instance(PyObject* value, py::handle type);

// A strict ndarray or a subclass that keeps its meaning; never a masked array.
bool is_array(PyObject* value);

// The dtype if it is one of ours in native byte order.
std::optional<Dtype> dtype_of(PyObject* descr);

// Each throws TypeError or ValueError. Params and state buffers must be float32 or float64 and
// writeable; no two of their elements may share memory.
Dtype check_writable(PyObject* array, const Label& label);
Dtype check_gradient(PyObject* array, const Label& label);
// ValueError: it is read-only, or two of its elements share memory. The cures end the messages.
void check_changeable(PyObject* array, const Label& label, const char* read_only_cure,
                      const char* overlap_cure);
// by_row: one element for each row, the param's first axis.
void check_shape(PyObject* array, PyObject* param, const Label& label, const Label& param_label,
                 bool by_row = false);

// A dense array of the param's shape, axis order and dtype, filled with `value`; memory of our own.
py::array state_like(PyObject* param, double value, bool by_row);
// What holds the elements of one of those, if it takes memory only as it is touched; else null.
const Zeros* zeros_of(PyObject* state);

} // namespace thalweg

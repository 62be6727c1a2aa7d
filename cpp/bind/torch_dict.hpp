// What is read of an optimizer's own dicts and sequences at every step.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>

#include "torch_held.hpp"

namespace thalweg {

namespace py = pybind11;

// A dict, list or tuple of the caller's, held as it is at this moment, where another thread may
// change it while what is in it is only borrowed.
inline PyObject* as_it_is(PyObject* container, TorchHeld& held) {
#ifdef Py_GIL_DISABLED
    PyObject* copy = nullptr;
    if (PyDict_Check(container))
        copy = PyDict_Copy(container);
    else if (PyList_Check(container))
        copy = PyList_AsTuple(container);
    else
        return held.share(container);
    if (!copy) throw py::error_already_set();
    return held.take(copy);
#else
    return held.share(container);
#endif
}

// Borrowed, or null.
inline PyObject* item(PyObject* dict, PyObject* key) {
    PyObject* const value = PyDict_GetItemWithError(dict, key);
    if (!value && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

// torch makes lists, and iterates over what the caller puts in their place.
inline bool is_sequence(PyObject* object) {
    return object && (PyList_Check(object) || PyTuple_Check(object));
}
inline std::size_t length_of(PyObject* sequence) {
    return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(sequence));
}
// Borrowed; IndexError if the sequence was shortened meanwhile.
inline PyObject* item_at(PyObject* sequence, std::size_t i) {
    const auto index = static_cast<Py_ssize_t>(i);
    PyObject* const found =
        PyList_Check(sequence) ? PyList_GetItem(sequence, index) : PyTuple_GetItem(sequence, index);
    if (!found) throw py::error_already_set();
    return found;
}

} // namespace thalweg

// What is read of an optimizer's own dicts and sequences at every step.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>

namespace thalweg {

namespace py = pybind11;

inline PyObject* interned(const char* text) {
    PyObject* const word = PyUnicode_InternFromString(text);
    if (!word) throw py::error_already_set();
    return word;
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

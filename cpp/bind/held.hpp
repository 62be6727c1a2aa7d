// What is found in the caller's containers, held: another thread may take it out meanwhile.
#pragma once
#include <pybind11/pybind11.h>

namespace thalweg {

namespace py = pybind11;

// The items of a list or tuple that others may change meanwhile: held, where they may do so between
// any two looks at it.
inline py::object items_of(PyObject* sequence) {
#ifdef Py_GIL_DISABLED
    if (PyList_Check(sequence)) {
        auto held = py::reinterpret_steal<py::object>(PyList_AsTuple(sequence));
        if (!held) throw py::error_already_set();
        return held;
    }
#endif
    return py::reinterpret_borrow<py::object>(sequence);
}

// What a dict has under the key, or nothing; throws what a key's __eq__ throws.
inline py::object item_of_dict(PyObject* dict, PyObject* key) {
    PyObject* value = nullptr;
#if PY_VERSION_HEX >= 0x030D0000
    if (PyDict_GetItemRef(dict, key, &value) < 0) throw py::error_already_set();
#else
    value = PyDict_GetItemWithError(dict, key);
    if (!value && PyErr_Occurred()) throw py::error_already_set();
    Py_XINCREF(value);
#endif
    return py::reinterpret_steal<py::object>(value);
}

} // namespace thalweg

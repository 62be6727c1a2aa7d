// C++ exceptions as Python's, for the functions that CPython calls without pybind11 between.
#pragma once
#include <pybind11/pybind11.h>

#include <exception>
#include <new>

namespace thalweg {

namespace py = pybind11;

// Calls `run`, which returns a new reference; null with the error set if it throws.
template <class Run> PyObject* guarded(const Run& run) {
    try {
        return run();
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const py::builtin_exception& error) {
        error.set_error();
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return nullptr;
}

} // namespace thalweg

// sgd_, adagrad_ and their forms by rows as native calls.
#pragma once
#include <pybind11/pybind11.h>

namespace thalweg {

// The native function that takes the place of a Python one of the same name: where the arguments
// are the usual ones it makes the step itself, else it calls that one, which has the words.
// `signature` is how inspect.signature shall read it.
PyObject* native_function(PyObject* general, const char* signature);

} // namespace thalweg

// A gradient that names its rows, as Python hands it in.
#pragma once
#include <pybind11/pybind11.h>

#include "array.hpp"
#include "step/rows.hpp"

namespace thalweg {

namespace py = pybind11;

class RowGrad {
  public:
    // Checks that they go together: TypeError or ValueError. Ids of another integer dtype or shape
    // become 1-D int64 ones, and the values their rows. The height is that of the tables it fits,
    // or None: of any.
    RowGrad(py::object its_rows, py::object its_values, const py::object& its_height);

    // The same for arrays that may have changed since. `what` is how messages call the gradient.
    RowNumbers check(const char* what, const std::string& path) const;

    // As in Optimizer: pybind11 asks it for raw memory for an object whose __init__ never ran.
    static void* operator new(std::size_t) {
        throw py::type_error("the RowGrad was never initialised; call super().__init__(rows, "
                             "values) in the subclass");
    }

    py::object rows, values;
    py::ssize_t height = -1; // any
};

// Null unless the value is a RowGrad.
const RowGrad* row_grad_of(PyObject* value);

void define_row_grad(py::module_& m);

} // namespace thalweg

#include "rowgrad.hpp"

namespace thalweg {

namespace {

PyObject* row_grad_type = nullptr;

// int32 or int64 in native byte order, by any of the names that C has for them.
bool is_row_number(PyObject* descr) {
    const auto* d = py::detail::array_descriptor_proxy(descr);
    const auto size = py::reinterpret_borrow<py::dtype>(descr).itemsize();
    return d->kind == 'i' && (d->byteorder == '=' || d->byteorder == '|') &&
           (size == 4 || size == 8);
}

} // namespace

RowGrad::RowGrad(py::object its_rows, py::object its_values)
    : rows(std::move(its_rows)), values(std::move(its_values)) {
    check("RowGrad", "");
}

RowNumbers RowGrad::check(const char* what, const std::string& path) const {
    const Label rows_label{what, path, ".rows"}, values_label{what, path, ".values"};
    const char* const expected = ": expected a 1-D array of int32 or int64, received ";
    if (!is_array(rows.ptr()))
        throw py::type_error(rows_label.text() + expected + received(rows.ptr()) +
                             "; pass np.asarray(rows, np.int64)");
    const auto& r = fields(rows.ptr());
    if (!is_row_number(r.descr))
        throw py::type_error(rows_label.text() + expected + "dtype " +
                             std::string(py::str(r.descr)) +
                             "; convert it: rows.astype(np.int64); a mask: np.flatnonzero(mask)");
    if (r.nd != 1)
        throw py::value_error(rows_label.text() + expected + "shape " + shape_text(rows.ptr()));
    check_gradient(values.ptr(), values_label);
    const auto& v = fields(values.ptr());
    if (v.nd == 0 || v.dimensions[0] != r.dimensions[0])
        throw py::value_error(values_label.text() + ": expected a first axis of " +
                              std::to_string(r.dimensions[0]) + ", one for each of " +
                              rows_label.text() + ", received shape " + shape_text(values.ptr()));
    return {r.data, r.strides[0], py::reinterpret_borrow<py::dtype>(r.descr).itemsize() == 8,
            static_cast<std::size_t>(r.dimensions[0])};
}

const RowGrad* row_grad_of(PyObject* value) {
    if (!is_instance(value, row_grad_type)) return nullptr;
    return py::handle(value).cast<const RowGrad*>();
}

void define_row_grad(py::module_& m) {
    py::class_<RowGrad> type(m, "RowGrad", "The native base of thalweg.RowGrad.");
    type.def(py::init([](py::object rows, py::object values) {
                 return ::new RowGrad(std::move(rows), std::move(values));
             }),
             py::arg("rows"), py::arg("values"))
        .def_readonly("rows", &RowGrad::rows)
        .def_readonly("values", &RowGrad::values);
    row_grad_type = type.ptr();
}

} // namespace thalweg

#include "rowgrad.hpp"

#include <algorithm>
#include <cstdint>

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

// Ids that are whole numbers, if not yet as a step reads them, and values that go with them.
void flatten(py::object& rows, py::object& values) {
    const py::module_ numpy = py::module_::import("numpy");
    py::object ids = rows;
    if (!is_array(ids.ptr())) {
        const bool list = PyList_Check(ids.ptr()) || PyTuple_Check(ids.ptr());
        const bool number = is_instance(ids.ptr(), numpy.attr("integer")) ||
                            (PyLong_Check(ids.ptr()) && !PyBool_Check(ids.ptr()));
        if (!list && !number) return;
        const bool empty = list && PyObject_Size(ids.ptr()) == 0;
        ids = empty ? numpy.attr("zeros")(0, "int64") : numpy.attr("asarray")(ids);
    }
    const auto* d = py::detail::array_descriptor_proxy(fields(ids.ptr()).descr);
    if ((d->kind != 'i' && d->kind != 'u') || !is_array(values.ptr())) return;
    const int nd = fields(ids.ptr()).nd;
    const auto& v = fields(values.ptr());
    if (v.nd < nd || !std::equal(v.dimensions, v.dimensions + nd, fields(ids.ptr()).dimensions))
        return;
    // Read before a subclass may run code of its own.
    py::list shape;
    py::ssize_t size = 1;
    for (int i = 0; i < nd; ++i) size *= v.dimensions[i];
    shape.append(size);
    for (int i = nd; i < v.nd; ++i) shape.append(v.dimensions[i]);
    if (d->kind == 'u' && size != 0)
        if (const py::object largest = ids.attr("max")(); largest > py::int_(INT64_MAX))
            throw py::index_error("RowGrad.rows: expected rows of a table, received " +
                                  std::string(py::str(largest)));
    if (nd != 1) values = values.attr("reshape")(py::tuple(shape));
    rows = ids.attr("astype")("int64").attr("reshape")(-1);
}

} // namespace

RowGrad::RowGrad(py::object its_rows, py::object its_values, const py::object& its_height)
    : rows(std::move(its_rows)), values(std::move(its_values)) {
    if (values.is_none())
        throw py::type_error("RowGrad.values: expected an array of float16, float32 or float64, "
                             "received None; pass None in place of the RowGrad");
    if (!is_array(rows.ptr()) || fields(rows.ptr()).nd != 1 ||
        !is_row_number(fields(rows.ptr()).descr))
        flatten(rows, values);
    if (!its_height.is_none()) {
        height = PyNumber_AsSsize_t(its_height.ptr(), PyExc_OverflowError);
        if (height == -1 && PyErr_Occurred()) throw py::error_already_set();
        if (height < 0 || PyBool_Check(its_height.ptr()))
            throw py::value_error("RowGrad.height: expected a whole number >= 0, received " +
                                  std::string(py::repr(its_height)));
    }
    check("RowGrad", "");
}

RowNumbers RowGrad::check(const char* what, const std::string& path) const {
    const Label rows_label{what, path, ".rows"}, values_label{what, path, ".values"};
    const char* const expected = ": expected integers, received ";
    if (!is_array(rows.ptr()))
        throw py::type_error(rows_label.text() + expected + received(rows.ptr()) +
                             "; pass np.asarray(rows, np.int64)");
    const auto& r = fields(rows.ptr());
    if (!is_row_number(r.descr))
        throw py::type_error(rows_label.text() + expected + "dtype " +
                             std::string(py::str(r.descr)) +
                             "; convert it: rows.astype(np.int64); a mask: np.flatnonzero(mask)");
    check_gradient(values.ptr(), values_label);
    const auto& v = fields(values.ptr());
    if (r.nd != 1)
        throw py::value_error(values_label.text() + ": expected the first axes " +
                              shape_text(rows.ptr()) + ", those of " + rows_label.text() +
                              ", received shape " + shape_text(values.ptr()));
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
    type.def(py::init([](py::object rows, py::object values, const py::object& height) {
                 return ::new RowGrad(std::move(rows), std::move(values), height);
             }),
             py::arg("rows"), py::arg("values"), py::arg("height") = py::none())
        .def_property_readonly(
            "height",
            [](const RowGrad& self) {
                return self.height < 0 ? py::object(py::none()) : py::object(py::int_(self.height));
            },
            "The rows of the tables that it fits, or None: any.")
        .def_readonly("rows", &RowGrad::rows)
        .def_readonly("values", &RowGrad::values);
    row_grad_type = type.ptr();
}

} // namespace thalweg

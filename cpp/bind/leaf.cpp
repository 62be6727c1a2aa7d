#include "leaf.hpp"

#include <algorithm>

namespace thalweg {

namespace {

constexpr int writeable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;

constinit Imported float16("numpy", "float16"), float32("numpy", "float32");

bool is_number(PyObject* value) {
    // These two exactly: a subclass could run its own __float__. NumPy's float64 is a Python float.
    return PyFloat_Check(value) || py::type::handle_of(value).is(float16.get()) ||
           py::type::handle_of(value).is(float32.get());
}

} // namespace

Leaf::Leaf(std::string its_path, py::object array, const Names& names)
    : path(std::move(its_path)), param(std::move(array)),
      dtype(check_writable(param.ptr(), {names.param, path})), names_(names),
      plain_array_(py::detail::npy_api::get().PyArray_Type_) {
    const auto& a = fields(param.ptr());
    data_ = a.data;
    descr_ = py::reinterpret_borrow<py::object>(a.descr);
    flags_ = a.flags;
    shape_.assign(a.dimensions, a.dimensions + a.nd);
    strides_.assign(a.strides, a.strides + a.nd);
    bytes_ = static_cast<std::ptrdiff_t>(size_of(dtype));
    for (const py::ssize_t length : shape_) bytes_ *= length;
    Item item;
    plan(item, strides_.data(), dtype);
    flat_ = item.traversal.is_flat();
}

void Leaf::set_state(py::object given) {
    const Label what{names_.state, path};
    const Dtype given_dtype = check_writable(given.ptr(), what);
    check_shape(given.ptr(), param.ptr(), what, {names_.param, path}, by_row_);
    if (given_dtype != dtype)
        throw py::type_error(what.text() + ": expected dtype " +
                             std::string(py::str(fields(param.ptr()).descr)) + ", that of " +
                             label(names_.param, path) + ", received dtype " +
                             std::string(py::str(fields(given.ptr()).descr)) +
                             "; make it with np.zeros_like(" + names_.param + ")");
    set_state_unchecked(std::move(given));
    given_ = true;
}

void Leaf::set_state_unchecked(py::object given) {
    state = std::move(given);
    const auto& s = fields(state.ptr());
    state_strides_.assign(s.strides, s.strides + s.nd);
    state_data_ = s.data;
    state_flags_ = s.flags;
    lie_anew();
}

void Leaf::make_average() {
    average = state_like(param.ptr(), 0.0, false);
    if (const Zeros* const untouched = zeros_of(average.ptr())) untouched->expect_all();
    const auto& a = fields(average.ptr());
    average_strides_.assign(a.strides, a.strides + a.nd);
    lie_anew();
}

void Leaf::drop_average() {
    average = py::object();
    lie_anew();
}

void Leaf::lie_anew() {
    Item item;
    plan(item, strides_.data(), dtype);
    flat_ = item.traversal.is_flat() && !by_row_;
    planned_strides_.assign(shape_.size() + 1, 0); // those of no gradient
    forget_gradient();
}

void Leaf::occupy(Occupied& occupied) const {
    occupied.add(param.ptr(), {names_.param, path});
    if (state) occupied.add(state.ptr(), {names_.state, path});
    if (average) occupied.add(average.ptr(), {"averages", path});
}

void Leaf::describe(Item& item) const {
    item.param = data_;
    item.state = state ? fields(state.ptr()).data : nullptr;
    item.dtype = dtype;
    item.by_row = by_row_;
    item.average.reset();
    if (average) {
        item.average = std::make_unique<Average>();
        item.average->data = fields(average.ptr()).data;
    }
    item.size = static_cast<std::size_t>(bytes_) / size_of(dtype);
    sequence_axes(shape_.size(), shape_.data(), strides_.data(), size_of(dtype), item.linear_axes);
}

void Leaf::plan(Item& item, const py::ssize_t* grad_strides, Dtype grad_dtype) const {
    const Traversal::Strides strides{strides_.data(), grad_strides,
                                     state && !by_row_ ? state_strides_.data() : nullptr,
                                     average ? average_strides_.data() : nullptr};
    item.traversal.plan(shape_.size(), shape_.data(), strides,
                        static_cast<std::ptrdiff_t>(size_of(dtype)),
                        static_cast<std::ptrdiff_t>(size_of(grad_dtype)));
}

void Leaf::bind_any_gradient(PyObject* grad, const Occupied& occupied, Item& item) {
    if (const RowGrad* rows = row_grad_of(grad)) return bind_rows(*rows, occupied, item);
    item.sparse = false;
    if (shape_.empty() && is_number(grad)) return bind_number(grad, item);
    const Label what{names_.grad, path};
    item.grad_dtype = check_gradient(grad, what);
    check_shape(grad, param.ptr(), what, {names_.param, path});
    const auto& a = fields(grad);
    item.linear = false;
    const bool planned = planned_dtype_ == item.grad_dtype &&
                         planned_strides_.size() == shape_.size() &&
                         std::equal(planned_strides_.begin(), planned_strides_.end(), a.strides) &&
                         item.traversal.boxes() != 0;
    if (!planned || a.data != strided_apart_) {
        occupied.check(grad, what);
        expect_all();
    }
    strided_apart_ = item.grad = a.data;
    sequence_axes(shape_.size(), shape_.data(), a.strides, size_of(item.grad_dtype), item.axes);
    if (by_row_) describe_rows(item, shape_.size(), shape_.data(), row_strides(a.strides));
    if (!planned) {
        plan(item, a.strides, item.grad_dtype);
        planned_strides_.assign(a.strides, a.strides + a.nd);
        planned_dtype_ = item.grad_dtype;
    }
}

void Leaf::bind_number(PyObject* grad, Item& item) {
    number_ = PyFloat_AsDouble(grad);
    if (number_ == -1.0 && PyErr_Occurred()) throw py::error_already_set();
    plan(item, nullptr, Dtype::float64);
    planned_dtype_ = Dtype::float16;
    planned_strides_.assign(1, 0);
    item.grad = reinterpret_cast<const char*>(&number_);
    sequence_axes(0, nullptr, nullptr, sizeof number_, item.axes);
    item.grad_dtype = Dtype::float64;
    item.linear = false;
    if (by_row_) describe_rows(item, 0, nullptr, row_strides(nullptr));
}

// A step of this part of the rows is one of much of them.
constexpr std::size_t much = 256;

void Leaf::bind_rows(const RowGrad& grad, const Occupied& occupied, Item& item) {
    const Label what{names_.grad, path, ".values"};
    if (average)
        throw py::value_error(label(names_.grad, path) +
                              ": expected an array, received a RowGrad; with weight_average every "
                              "row's average changes at each step: pass the dense gradient, or "
                              "step the table by an optimizer of its own, without "
                              "weight_average, in a thalweg.Joint");
    if (shape_.empty())
        throw py::value_error(label(names_.grad, path) +
                              ": expected a number or an array, received a RowGrad; " +
                              label(names_.param, path) + " is 0-d and has no rows");
    const RowNumbers numbers = grad.check(names_.grad, path);
    if (grad.height >= 0 && grad.height != shape_[0])
        throw py::value_error(label(names_.grad, path) + ": expected a RowGrad of height " +
                              std::to_string(shape_[0]) + ", the rows of " +
                              label(names_.param, path) + ", received height " +
                              std::to_string(grad.height));
    PyObject* const values = grad.values.ptr();
    const auto& v = fields(values);
    if (v.nd != static_cast<int>(shape_.size()) ||
        !std::equal(shape_.begin() + 1, shape_.end(), v.dimensions + 1)) {
        py::tuple expected(shape_.size());
        for (std::size_t i = 0; i < shape_.size(); ++i)
            expected[i] = i == 0 ? static_cast<py::ssize_t>(numbers.count) : shape_[i];
        throw py::value_error(what.text() + ": expected shape " + std::string(py::str(expected)) +
                              ", rows of " + label(names_.param, path) + ", received shape " +
                              shape_text(values));
    }
    occupied.check(values, what);
    item.grad_dtype = *dtype_of(v.descr);
    item.grad = v.data;
    item.linear = false;
    item.sparse = true;
    describe_rows(item, shape_.size(), shape_.data(), row_strides(v.strides));
    item.rows->numbers = numbers;
    // Not long, and all pages are in use: fewer of them are found faster.
    if (numbers.count * much >= static_cast<std::size_t>(shape_[0])) expect_all();
}

void Leaf::refuse_row(const BadRow& bad) const {
    thalweg::refuse_row(Label{names_.grad, path, ".rows"}.text(), label(names_.param, path),
                        static_cast<std::size_t>(shape_[0]), bad);
}

void refuse_row(const std::string& rows, const std::string& param, std::size_t count,
                const BadRow& bad) {
    const std::string range =
        count == 0 ? "no rows" : "rows from 0 to " + std::to_string(count - 1);
    throw py::index_error(rows + ": expected " + range + ", those of " + param + ", received " +
                          std::to_string(bad.row) + " at position " + std::to_string(bad.position));
}

void Leaf::check_state() const {
    const auto& s = fields(state.ptr());
    const std::size_t nd = by_row_ ? std::min<std::size_t>(shape_.size(), 1) : shape_.size();
    if (s.data != state_data_ || s.flags != state_flags_ || dtype_of(s.descr) != dtype ||
        s.nd != static_cast<int>(nd) ||
        !std::equal(s.dimensions, s.dimensions + nd, shape_.begin()) ||
        !std::equal(s.strides, s.strides + nd, state_strides_.begin()))
        refuse_change(state.ptr());
}

void Leaf::refuse_change(PyObject* array) const {
    const auto& a = fields(array);
    const bool is_param = array == param.ptr();
    std::string change = "another buffer";
    if (dtype_of(a.descr) != dtype || (is_param && a.descr != descr_.ptr()))
        change = "dtype " + std::string(py::str(a.descr));
    else if (is_param ? !is_alike(a) : a.data == state_data_ && a.flags == state_flags_)
        change = "shape " + shape_text(array) + " and strides " +
                 std::string(py::str(py::handle(array).attr("strides")));
    else if ((a.flags & writeable) == 0)
        change = "a read-only array";
    else if (a.data == (is_param ? data_ : state_data_))
        change = "other flags";
    PyErr_SetString(PyExc_RuntimeError,
                    (label(is_param ? names_.param : names_.state, path) +
                     ": expected the memory it had when the optimizer "
                     "was made, received " +
                     change + "; make a new optimizer after changing an array's memory or layout")
                        .c_str());
    throw py::error_already_set();
}

} // namespace thalweg

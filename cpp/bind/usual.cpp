#include "usual.hpp"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "array.hpp"
#include "overlap.hpp"
#include "run.hpp"

namespace thalweg {

namespace {

using py::detail::npy_api;
constexpr int c_order = npy_api::NPY_ARRAY_C_CONTIGUOUS_;
constexpr int f_order = npy_api::NPY_ARRAY_F_CONTIGUOUS_;
constexpr int readable = npy_api::NPY_ARRAY_ALIGNED_;
constexpr int writeable = readable | npy_api::NPY_ARRAY_WRITEABLE_;

using Array = py::detail::PyArray_Proxy;

// NumPy's own descriptors: a copy of one, for example with metadata, is not usual.
struct Numpy {
    const PyTypeObject* ndarray = npy_api::get().PyArray_Type_;
    PyObject* float32 = py::dtype::of<float>().release().ptr();
    PyObject* float64 = py::dtype::of<double>().release().ptr();
    PyObject* int32 = py::dtype::of<std::int32_t>().release().ptr();
    PyObject* int64 = py::dtype::of<std::int64_t>().release().ptr();
};
std::atomic<const Numpy*> known = nullptr;
const Numpy& numpy() { return *known.load(std::memory_order_acquire); }

bool is_plain(PyObject* array, int flags) {
    return Py_TYPE(array) == numpy().ndarray && (fields(array).flags & flags) == flags;
}

// Of one shape, and both of them a run in one order.
bool are_alike(const Array& a, const Array& b) {
    return a.descr == b.descr && a.nd == b.nd && (a.flags & b.flags & (c_order | f_order)) != 0 &&
           std::equal(a.dimensions, a.dimensions + a.nd, b.dimensions);
}

std::size_t size_of(const Array& a, int first_axis = 0) {
    std::size_t size = 1;
    for (int i = first_axis; i < a.nd; ++i) size *= static_cast<std::size_t>(a.dimensions[i]);
    return size;
}

// Of an array that is one run.
Span run_of(PyObject* array) {
    const Array& a = fields(array);
    const std::size_t width = a.descr == numpy().float32 ? sizeof(float) : sizeof(double);
    return {a.data, a.data + size_of(a) * width};
}

// While the GIL is let go, another thread may take arrays out of their lists.
class Held {
  public:
    Held(const std::vector<PyObject*>& arrays, std::size_t bytes)
        : arrays_(bytes < long_step ? nullptr : &arrays) {
        if (arrays_)
            for (PyObject* array : *arrays_) Py_INCREF(array);
    }
    ~Held() {
        if (arrays_)
            for (PyObject* array : *arrays_) Py_DECREF(array);
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

  private:
    const std::vector<PyObject*>* arrays_;
};

} // namespace

Usual& Usual::of_this_thread() {
    thread_local Usual usual;
    return usual;
}

void Usual::begin(const Level& level, const Kernel& kernel, std::size_t count) {
    first_made(known, [] { return new const Numpy; });
    level_ = &level;
    kernel_ = &kernel;
    if (plan_.items.size() != count) plan_.items.resize(count);
    places_.begin(count);
    plan_.has_sparse = false;
    arrays_.clear();
    count_ = 0;
    float32_ = false;
    in_c_order_ = true;
}

// All but the gradient of the next item, which lies at `grad`.
Item& Usual::put(PyObject* param, const Span& at, PyObject* state, const Span& state_at,
                 const Span& grad) {
    const Array& p = fields(param);
    Item& item = plan_.items[count_];
    item.dtype = item.grad_dtype = p.descr == numpy().float32 ? Dtype::float32 : Dtype::float64;
    const bool single = item.dtype == Dtype::float32;
    item.param = p.data;
    item.state = state ? fields(state).data : nullptr;
    item.size = size_of(p);
    item.active = true;
    item.by_row = kernel_->by_row;
    item.kernel = kernel_;
    item.update = single ? kernel_->float32 : kernel_->float64;
    item.options = &options_;
    item.t = 1; // no counter: dampening always applies
    float32_ |= single;
    in_c_order_ &= p.nd == 1 || (p.flags & c_order) != 0;
    places_.add({at, state_at, grad});
    ++count_;
    return item;
}

bool Usual::add(PyObject* param, PyObject* grad, PyObject* state) {
    if (!is_plain(param, writeable)) return false;
    const Array& p = fields(param);
    if (p.descr != numpy().float32 && p.descr != numpy().float64) return false;
    const bool has_grad = grad != Py_None;
    if (state && !is_plain(state, writeable)) return false;
    if (has_grad && !is_plain(grad, readable)) return false;
    arrays_.push_back(param);
    if (state) arrays_.push_back(state);
    if (has_grad) arrays_.push_back(grad);
    if ((p.flags & (c_order | f_order)) == 0 || (state && !are_alike(fields(state), p)) ||
        (has_grad && !are_alike(fields(grad), p)))
        return p.nd == 1 && add_strided(param, grad, state);
    const Span at = run_of(param);
    const auto run = [bytes = at.high - at.low](PyObject* array) {
        return Span{fields(array).data, fields(array).data + bytes};
    };
    Item& item = put(param, at, state, state ? run(state) : Span{}, has_grad ? run(grad) : Span{});
    item.grad = has_grad ? fields(grad).data : nullptr;
    item.active = has_grad;
    item.linear = true;
    item.sparse = false;
    return true;
}

// Of one axis: a column of a matrix, say.
bool Usual::add_strided(PyObject* param, PyObject* grad, PyObject* state) {
    const Array& p = fields(param);
    const auto width =
        static_cast<py::ssize_t>(p.descr == numpy().float32 ? sizeof(float) : sizeof(double));
    const auto fits = [&](const Array& a) {
        return a.descr == p.descr && a.nd == 1 && a.dimensions[0] == p.dimensions[0];
    };
    const auto is_apart_in_itself = [&](const Array& a) {
        return a.dimensions[0] < 2 || std::abs(a.strides[0]) >= width;
    };
    const bool has_grad = grad != Py_None;
    if (!is_apart_in_itself(p) || p.dimensions[0] == 0) return false;
    if (state && !(fits(fields(state)) && is_apart_in_itself(fields(state)))) return false;
    if (has_grad && !fits(fields(grad))) return false;
    const auto span = [&](PyObject* array) {
        const Extent e = extent_of(array);
        return Span{e.low, e.high, fields(array).strides[0]};
    };
    Item& item = put(param, span(param), state, state ? span(state) : Span{},
                     has_grad ? span(grad) : Span{});
    item.active = has_grad;
    item.linear = item.sparse = false;
    if (!has_grad) return true;
    const Array& g = fields(grad);
    item.grad = g.data;
    item.traversal.plan(1, p.dimensions,
                        {p.strides, g.strides, state ? fields(state).strides : nullptr}, width,
                        width);
    sequence_axes(1, g.dimensions, g.strides, static_cast<std::size_t>(width), item.axes);
    return true;
}

// Columns of one matrix lie among each other: theirs are the places within its period.
bool Usual::are_apart() {
    if (places_.are_apart()) return true;
    if (plan_.has_sparse) return false;
    static const std::string no_path;
    Occupied written;
    std::size_t next = 0;
    std::vector<PyObject*> grads;
    for (const Item& item : plan_.items) {
        written.add(arrays_[next++], {"param", no_path});
        if (item.state) written.add(arrays_[next++], {"state", no_path});
        if (item.active) grads.push_back(arrays_[next++]);
    }
    try {
        written.finish();
        for (PyObject* grad : grads) written.check(grad, {"grad", no_path});
    } catch (const py::builtin_exception&) {
        return false;
    }
    places_.trust();
    return true;
}

bool Usual::add_rows(PyObject* table, PyObject* rows, PyObject* values, PyObject* state) {
    if (!is_plain(table, writeable | c_order) || !is_plain(values, readable | c_order) ||
        !is_plain(rows, 0) || (state && !is_plain(state, writeable | c_order)))
        return false;
    const Array &t = fields(table), &v = fields(values), &r = fields(rows);
    if ((t.descr != numpy().float32 && t.descr != numpy().float64) || v.descr != t.descr)
        return false;
    if (r.nd != 1 || (r.descr != numpy().int64 && r.descr != numpy().int32)) return false;
    if (t.nd == 0 || v.nd != t.nd || v.dimensions[0] != r.dimensions[0] ||
        !std::equal(t.dimensions + 1, t.dimensions + t.nd, v.dimensions + 1))
        return false;
    if (state) {
        const Array& s = fields(state);
        const int nd = kernel_->by_row ? 1 : t.nd;
        if (s.descr != t.descr || s.nd != nd ||
            !std::equal(t.dimensions, t.dimensions + nd, s.dimensions))
            return false;
    }
    const std::size_t width = t.descr == numpy().float32 ? sizeof(float) : sizeof(double);
    Item& item = put(table, run_of(table), state, state ? run_of(state) : Span{}, run_of(values));
    item.grad = v.data;
    item.linear = false;
    item.sparse = plan_.has_sparse = true;
    const bool single = item.dtype == Dtype::float32;
    item.update_rows = single ? kernel_->rows_float32 : kernel_->rows_float64;
    item.measure_rows = single ? level_->measure_rows_float32 : level_->measure_rows_float64;
    if (!item.rows) item.rows = std::make_unique<ByRows>();
    ByRows& by_rows = *item.rows;
    const std::size_t row_size = size_of(t, 1);
    const auto operand = [&](char* data, std::size_t row, std::vector<Sequence::Axis>& axes) {
        axes.assign(1, {row, static_cast<std::ptrdiff_t>(width)});
        return RowOperand{{data, axes.data(), 1, item.dtype},
                          static_cast<std::ptrdiff_t>(row * width)};
    };
    by_rows.table = static_cast<std::size_t>(t.dimensions[0]);
    by_rows.box = RowBox{};
    by_rows.box.row_size = row_size;
    by_rows.box.param = operand(item.param, row_size, by_rows.param);
    by_rows.box.grad = operand(v.data, row_size, by_rows.grad);
    if (state)
        by_rows.box.state = operand(item.state, kernel_->by_row ? 1 : row_size, by_rows.state);
    by_rows.numbers = {r.data, r.strides[0], r.descr == numpy().int64,
                       static_cast<std::size_t>(r.dimensions[0])};
    for (PyObject* array : {table, rows, values, state})
        if (array) arrays_.push_back(array);
    return true;
}

Usual::Outcome Usual::run(const Options& options, const Limits& limits, double& norm) {
    options_ = options;
    options_.judged = limits.judge();
    std::size_t bytes = 0;
    for (Item& item : plan_.items) {
        const std::size_t width = thalweg::size_of(item.dtype);
        bytes += item.size * width;
        if (!limits.measure()) continue;
        if (!in_c_order_) return Outcome::unusual;
        item.measure =
            item.dtype == Dtype::float32 ? level_->measure_float32 : level_->measure_float64;
        item.linear_axes.assign(1, {item.size, static_cast<std::ptrdiff_t>(width)});
    }
    // Sorting rows cuts, too.
    if (!plan_.has_sparse && (limits.measure() || !Plan::is_for_one_thread(bytes))) plan_.cut();
    if (run_short(plan_, limits)) return Outcome::applied;
    const Held held(arrays_, bytes);
    Part part{&plan_, limits};
    const Ran ran = run_parts({&part, 1}, [&](std::size_t active_bytes) {
        take_part(part, active_bytes, [this](double clip) { options_.clip = clip; });
    });
    if (ran.bad) return Outcome::unusual; // nothing has changed
    if (!ran.threads_given) warn_of_refused_threads();
    if (part.refused) return Outcome::unusual;
    if (!part.taken) return Outcome::skipped;
    if (limits.max_norm != 0) norm = part.norm;
    return Outcome::applied;
}

} // namespace thalweg

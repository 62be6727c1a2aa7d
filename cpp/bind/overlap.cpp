#include "overlap.hpp"

#include <algorithm>

#include "array.hpp"

namespace thalweg {

namespace {

// Steps of np.shares_memory's search, a fraction of a second; what it cannot settle is refused.
constexpr int search_limit = 100000;

void refuse_if_shared(PyObject* a, const Label& a_label, PyObject* b, const Label& b_label) {
    const py::module_ numpy = py::module_::import("numpy");
    // A subclass may answer np.shares_memory itself; a plain view of it does not.
    const auto plain = numpy.attr("asarray");
    bool shared = true;
    const char* verdict = " share memory";
    try {
        shared =
            numpy.attr("shares_memory")(plain(py::handle(a)), plain(py::handle(b)), search_limit)
                .cast<bool>();
    } catch (py::error_already_set& error) {
        if (!error.matches(numpy.attr("exceptions").attr("TooHardError"))) throw;
        verdict = " may share memory: their strides are too involved to tell";
    }
    if (shared)
        throw py::value_error(a_label.text() + ": expected memory of its own, but it and " +
                              b_label.text() + verdict +
                              "; pass np.array(a), a copy, for one of them");
}

} // namespace

Extent extent_of(PyObject* array) {
    const auto& a = fields(array);
    if (std::find(a.dimensions, a.dimensions + a.nd, 0) != a.dimensions + a.nd)
        return {a.data, a.data};
    Extent e{a.data, a.data + py::reinterpret_borrow<py::array>(array).itemsize()};
    for (int i = 0; i < a.nd; ++i) {
        const auto reach = (a.dimensions[i] - 1) * a.strides[i];
        (reach < 0 ? e.low : e.high) += reach;
    }
    return e;
}

void Occupied::add(PyObject* array, const Label& label) {
    const Extent e = extent_of(array);
    if (e.low != e.high)
        buffers_.push_back({e.low, e.high, nullptr, array, label.what, label.path});
}

void Occupied::finish() {
    std::stable_sort(buffers_.begin(), buffers_.end(),
                     [](const Buffer& a, const Buffer& b) { return a.low < b.low; });
    const char* highest = nullptr;
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
        const Buffer& b = buffers_[i];
        for (std::size_t j = i; j-- > 0 && buffers_[j].highest > b.low;)
            if (buffers_[j].high > b.low)
                refuse_if_shared(buffers_[j].array, {buffers_[j].what, buffers_[j].path}, b.array,
                                 {b.what, b.path});
        highest = std::max(highest, b.high);
        buffers_[i].highest = highest;
    }
}

bool Occupied::may_meet(const char* low, const char* high) const {
    const auto after = std::partition_point(buffers_.begin(), buffers_.end(),
                                            [high](const Buffer& b) { return b.low < high; });
    return after != buffers_.begin() && (after - 1)->highest > low;
}

void Occupied::check(PyObject* array, const Label& label) const {
    const Extent e = extent_of(array);
    if (e.low == e.high || !may_meet(e.low, e.high)) return;
    for (const Buffer& b : buffers_)
        if (b.low < e.high && e.low < b.high)
            refuse_if_shared(array, label, b.array, {b.what, b.path});
}

} // namespace thalweg

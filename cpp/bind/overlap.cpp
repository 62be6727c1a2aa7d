#include "overlap.hpp"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <numeric>

#include "array.hpp"

namespace thalweg {

namespace {

// Steps of np.shares_memory's search, a fraction of a second; what it cannot settle is refused.
constexpr int search_limit = 100000;

// Whether their places within a period settle it.
bool are_apart(const Extent& a, const Extent& b) {
    if (a.period == 0 || b.period == 0) return false;
    const std::size_t period = a.period == b.period ? a.period : std::gcd(a.period, b.period);
    if (a.run > period || b.run > period) return false;
    const bool a_first = a.low <= b.low;
    const auto distance = static_cast<std::size_t>(a_first ? b.low - a.low : a.low - b.low);
    const std::size_t between = distance % period;
    return between >= (a_first ? a : b).run && period - between >= (a_first ? b : a).run;
}

void refuse_if_shared(PyObject* a, const Label& a_label, PyObject* b, const Label& b_label,
                      const char* cure) {
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
                              b_label.text() + verdict + cure);
}

} // namespace

Extent extent_of(PyObject* array) {
    const auto& a = fields(array);
    if (std::find(a.dimensions, a.dimensions + a.nd, 0) != a.dimensions + a.nd)
        return {a.data, a.data};
    struct Axis {
        std::size_t stride, length;
    };
    std::array<Axis, 64> axes; // NumPy's most; the widest first
    std::size_t count = 0;
    auto item = static_cast<std::size_t>(py::reinterpret_borrow<py::array>(array).itemsize());
    Extent e{a.data, a.data + item};
    for (int i = 0; i < a.nd; ++i) {
        const auto reach = (a.dimensions[i] - 1) * a.strides[i];
        (reach < 0 ? e.low : e.high) += reach;
        if (reach == 0) continue;
        const Axis axis{static_cast<std::size_t>(std::abs(a.strides[i])),
                        static_cast<std::size_t>(a.dimensions[i])};
        std::size_t at = count++;
        for (; at > 0 && axes[at - 1].stride < axis.stride; --at) axes[at] = axes[at - 1];
        axes[at] = axis;
    }
    if (count == 0) return e;
    // Axes that go on where the next one ends are one.
    std::size_t k = 0;
    while (k + 1 < count && axes[k].stride == axes[k + 1].stride * axes[k + 1].length) ++k;
    std::size_t run = item;
    for (std::size_t i = k + 1; i < count; ++i) run += (axes[i].length - 1) * axes[i].stride;
    if (run <= axes[k].stride) e.period = axes[k].stride, e.run = run;
    return e;
}

void Occupied::add(PyObject* array, const Label& label) {
    const Extent e = extent_of(array);
    if (!e.is_empty()) buffers_.push_back({e, nullptr, array, label.what, label.path});
}

void Occupied::finish() {
    std::stable_sort(buffers_.begin(), buffers_.end(),
                     [](const Buffer& a, const Buffer& b) { return a.extent.low < b.extent.low; });
    const char* highest = nullptr;
    std::size_t first = 0; // of those that meet each other, if only by way of others
    for (std::size_t i = 0; i < buffers_.size(); ++i) {
        if (buffers_[i].extent.low >= highest) {
            check_pairs(first, i);
            first = i;
        }
        highest = std::max(highest, buffers_[i].extent.high);
        buffers_[i].highest = highest;
    }
    check_pairs(first, buffers_.size());
}

// In order of their places where all have one period: there are as many pairs as the square of
// them.
bool Occupied::are_apart_in_period(std::size_t first, std::size_t last) const {
    const std::size_t period = buffers_[first].extent.period;
    if (period == 0) return false;
    struct Arc {
        std::size_t begin, run;
    };
    std::vector<Arc> arcs;
    arcs.reserve(last - first);
    const char* const from = buffers_[first].extent.low;
    for (std::size_t i = first; i < last; ++i) {
        const Extent& e = buffers_[i].extent;
        if (e.period != period) return false;
        arcs.push_back({static_cast<std::size_t>(e.low - from) % period, e.run});
    }
    std::sort(arcs.begin(), arcs.end(),
              [](const Arc& a, const Arc& b) { return a.begin < b.begin; });
    const auto meet = [](const Arc& a, const Arc& b) { return b.begin - a.begin < a.run; };
    return std::adjacent_find(arcs.begin(), arcs.end(), meet) == arcs.end() &&
           period - arcs.back().begin + arcs.front().begin >= arcs.back().run;
}

void Occupied::check_pairs(std::size_t first, std::size_t last) const {
    if (last - first < 2 || are_apart_in_period(first, last)) return;
    for (std::size_t i = first; i < last; ++i) {
        const Buffer& b = buffers_[i];
        for (std::size_t j = i; j-- > first && buffers_[j].highest > b.extent.low;)
            if (buffers_[j].extent.high > b.extent.low && !are_apart(buffers_[j].extent, b.extent))
                refuse_if_shared(buffers_[j].array, {buffers_[j].what, buffers_[j].path}, b.array,
                                 {b.what, b.path}, cure_);
    }
}

bool Occupied::may_meet(const char* low, const char* high) const {
    const auto after = std::partition_point(buffers_.begin(), buffers_.end(),
                                            [high](const auto& b) { return b.extent.low < high; });
    return after != buffers_.begin() && (after - 1)->highest > low;
}

void Occupied::check(PyObject* array, const Label& label) const {
    const Extent e = extent_of(array);
    if (e.is_empty() || !may_meet(e.low, e.high)) return;
    for (const Buffer& b : buffers_)
        if (b.extent.meets(e) && !are_apart(b.extent, e))
            refuse_if_shared(array, label, b.array, {b.what, b.path}, cure_);
}

} // namespace thalweg

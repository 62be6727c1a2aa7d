#include "zeroed.hpp"

#include "array.hpp"
#include "overlap.hpp"
#include "rowgrad.hpp"

namespace thalweg {

namespace {

constexpr const char* name = "grads";
constexpr const char* cure =
    "; zero_grads=True zeroes it once it is used: pass an array of your own, np.array(g), or leave "
    "zero_grads out";
constexpr const char* shared_cure =
    "; zero_grads=True zeroes one before the other is used: pass np.array(g), a copy, for one of "
    "them, or leave zero_grads out";

} // namespace

void Zeroed::add(PyObject* grad, const std::string& path, bool linear, bool zeroed) {
    const RowGrad* const rows = linear ? nullptr : row_grad_of(grad);
    PyObject* const array = rows ? rows->values.ptr() : grad;
    if (!linear && !rows && !is_array(grad)) {
        if (zeroed)
            throw py::type_error(label(name, path) + ": expected an array, received the number " +
                                 std::string(py::repr(py::handle(grad))) + cure);
        return;
    }
    if (zeroed) check_changeable(array, {name, path, rows ? ".values" : ""}, cure, cure);
    Span span;
    if (linear) {
        const auto& a = fields(array);
        auto bytes = static_cast<std::ptrdiff_t>(size_of(*dtype_of(a.descr)));
        for (int i = 0; i < a.nd; ++i) bytes *= a.dimensions[i];
        span = {a.data, a.data + bytes};
    }
    now_.push_back({span, array, &path, zeroed});
}

void Zeroed::check() {
    if (now_.size() < 2 || now_ == apart_) return;
    Occupied zeroed(shared_cure);
    for (const Entry& each : now_)
        if (each.zeroed) zeroed.add(each.array, {name, *each.path});
    zeroed.finish();
    for (const Entry& each : now_)
        if (!each.zeroed) zeroed.check(each.array, {name, *each.path});
    apart_ = now_;
}

} // namespace thalweg

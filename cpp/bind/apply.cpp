#include "apply.hpp"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "group.hpp"
#include "judge.hpp"
#include "leaf.hpp"
#include "overlap.hpp"
#include "run.hpp"

namespace thalweg {

namespace {

constexpr const char* no_callable =
    ": expected a number, received a callable; no steps are counted here: pass what it returns";

// Refuses all but a float64 array of one element.
void check_norm(PyObject* array) {
    const Label what{"norm", ""};
    if (check_writable(array, what) != Dtype::float64)
        throw py::type_error("norm: expected an array of float64, received dtype " +
                             std::string(py::str(fields(array).descr)) + "; pass np.zeros(1)");
    const auto& a = fields(array);
    if (std::any_of(a.dimensions, a.dimensions + a.nd, [](auto n) { return n != 1; }))
        throw py::value_error("norm: expected an array of one element, received shape " +
                              shape_text(array) + "; pass np.zeros(1)");
}

} // namespace

bool apply(const std::string& kernel_name, const py::tuple& params, const py::tuple& grads,
           const py::object& states, const char* state_name, const py::dict& options, bool numbered,
           const py::object& norm, const Level& level) {
    const Kernel& kernel = kernel_called(level, kernel_name);
    const Names names{"param", "grad", state_name};
    const std::string no_path;
    const auto path = [numbered](std::size_t i) { return numbered ? std::to_string(i) : ""; };
    if (grads.size() != params.size())
        throw py::value_error("grad: expected " + std::to_string(params.size()) +
                              " arrays, as many as in param, received " +
                              std::to_string(grads.size()));
    const py::tuple given = kernel.has_state ? py::tuple(states) : py::tuple();
    std::vector<Leaf> leaves;
    leaves.reserve(params.size());
    Plan plan;
    auto& items = plan.items;
    items.resize(params.size());
    Group group(kernel_name);
    Occupied occupied;
    for (std::size_t i = 0; i < params.size(); ++i) {
        Leaf& leaf = leaves.emplace_back(path(i), params[i], names);
        if (kernel.by_row) leaf.keep_state_by_row();
        group.float32 |= leaf.dtype == Dtype::float32;
    }
    // Before the states are looked at: options may run code of the caller's.
    double scale = 1;
    Limits limits;
    for (const py::handle entry : entries(options)) {
        const auto pair = py::reinterpret_borrow<py::tuple>(entry);
        const auto name = pair[0].cast<std::string>();
        const auto number = [&] {
            return option_number(*find_option(name.c_str()), pair[1], group.float32, name);
        };
        if (name == "on_nonfinite") {
            limits.on_nonfinite = nonfinite_called(pair[1]);
            continue;
        }
        if (PyCallable_Check(pair[1].ptr())) throw py::type_error(name + no_callable);
        if (name == "scale")
            scale = number();
        else if (const auto limit = Limits::find(name))
            limits.*limit = pair[1].is_none() && Limits::is_optional(name) ? 0.0 : number();
        else
            group.set(name, pair[1], name);
    }
    if (!norm.is_none()) {
        check_norm(norm.ptr());
        if (limits.max_norm == 0) limits.max_norm = std::numeric_limits<double>::infinity();
    }
    for (const Leaf& leaf : leaves) leaf.check_unchanged();
    if (kernel.has_state) {
        if (given.size() != params.size())
            throw py::value_error(
                std::string(state_name) + ": expected " + std::to_string(params.size()) +
                " arrays, as many as in param, received " + std::to_string(given.size()));
        for (std::size_t i = 0; i < leaves.size(); ++i) leaves[i].set_state(given[i]);
    }
    for (const Leaf& leaf : leaves) leaf.occupy(occupied);
    if (!norm.is_none()) occupied.add(norm.ptr(), {"norm", no_path});
    occupied.finish();
    group.begin_step(scale, limits);
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        leaves[i].describe(items[i]);
        set_kernel(items[i], level, kernel_called(level, kernel_name));
        items[i].options = &group.current;
        items[i].t = 1; // no counter: dampening always applies
        const py::object grad = grads[i];
        items[i].active = !grad.is_none();
        if (!items[i].active) continue;
        leaves[i].bind_gradient(grad.ptr(), occupied, items[i]);
        plan.has_sparse |= items[i].sparse;
    }
    plan.cut();
    Part part{&plan, limits};
    const Parts parts{&part, 1};
    const std::vector<Leaf>* const of_part = &leaves;
    const bool threads_given = run(parts, {&of_part, 1}, [&](std::size_t bytes) {
        take_part(part, bytes, [&group](double clip) { group.current.clip = clip; });
    });
    const bool applied = part.taken;
    if (applied && !norm.is_none())
        std::memcpy(fields(norm.ptr()).data, &part.norm, sizeof part.norm);
    if (!threads_given) warn_of_refused_threads();
    if (part.refused) refuse_nonfinite(parts, {&of_part, 1}, names.grad);
    return applied;
}

} // namespace thalweg

#include "apply.hpp"

#include <vector>

#include "group.hpp"
#include "leaf.hpp"
#include "overlap.hpp"
#include "run.hpp"

namespace thalweg {

void apply(const std::string& kernel_name, const py::tuple& params, const py::tuple& grads,
           const py::object& states, const char* state_name, const py::dict& options, bool numbered,
           const Level& level) {
    const Kernel& kernel = kernel_called(level, kernel_name);
    const Names names{"param", "grad", state_name};
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
    for (const py::handle entry : entries(options)) {
        const auto pair = py::reinterpret_borrow<py::tuple>(entry);
        const auto name = pair[0].cast<std::string>();
        if (PyCallable_Check(pair[1].ptr()))
            throw py::type_error(name + ": expected a number, received a callable; no steps are "
                                        "counted here: pass what it returns");
        if (name == "scale")
            scale = option_number(*find_option("scale"), pair[1], group.float32, name);
        else
            group.set(name, pair[1], name);
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
    occupied.finish();
    group.begin_step(scale, Limits());
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        leaves[i].describe(items[i]);
        set_kernel(items[i], level, kernel_name);
        items[i].options = &group.current;
        items[i].t = 1; // no counter: dampening always applies
        const py::object grad = grads[i];
        items[i].active = !grad.is_none();
        if (!items[i].active) continue;
        leaves[i].bind_gradient(grad.ptr(), occupied, items[i]);
        plan.has_sparse |= items[i].sparse;
    }
    plan.cut();
    if (!run(plan, leaves, [&plan](std::size_t bytes) { plan.run(bytes); }))
        warn_of_refused_threads();
}

} // namespace thalweg

// One array of an optimizer changed for another, of other height: a vocabulary that grows.
#include <algorithm>
#include <optional>
#include <utility>

#include "array.hpp"
#include "optimizer.hpp"
#include "run.hpp"

namespace thalweg {

namespace {

// The rows that both have. Of an array without axes, its one element.
void copy_rows(const py::object& from, const py::object& to) {
    if (fields(from.ptr()).nd == 0) {
        to[py::ellipsis()] = from;
        return;
    }
    const py::slice both(0,
                         std::min(fields(from.ptr()).dimensions[0], //
                                  fields(to.ptr()).dimensions[0]),
                         1);
    to[both] = from[both];
}

void check_rows(const py::object& array, const py::object& before, const Label& what) {
    const auto &a = fields(array.ptr()), &b = fields(before.ptr());
    const std::string cure = "; only the length of the first axis may change";
    if (dtype_of(a.descr) != dtype_of(b.descr))
        throw py::type_error(what.text() + ": expected dtype " + std::string(py::str(b.descr)) +
                             ", as the array had so far, received dtype " +
                             std::string(py::str(a.descr)) + cure);
    const bool alike =
        a.nd == b.nd &&
        (a.nd == 0 || std::equal(a.dimensions + 1, a.dimensions + a.nd, b.dimensions + 1));
    if (!alike)
        throw py::value_error(what.text() + ": expected the shape " + shape_text(before.ptr()) +
                              " but for its length, received shape " + shape_text(array.ptr()) +
                              cure);
}

} // namespace

void Optimizer::replace(std::size_t index, const py::object& array, const py::object& state) {
    std::optional<Turn> turn;
    if (!(paused_ && gate_.is_mine())) turn.emplace(gate_);
    if (is_bound_)
        throw py::value_error("replace: expected an optimizer whose step takes gradients, received "
                              "one with bound buffers, which are as long as the old array; make a "
                              "new optimizer");
    const Leaf& before = leaves_.at(index); // stays: the gate is held
    const Group& group = groups_[group_of_[index]];
    const Kernel& kernel = kernel_called(*level_, group.kernel);
    const Label what{operand_names.state, before.path};
    Leaf leaf(before.path, array, operand_names);
    check_rows(array, before.param, {operand_names.param, before.path});
    if (!kernel.has_state && !state.is_none())
        throw py::value_error(what.text() + ": expected None, as this rule keeps no state, "
                                            "received an array");
    if (state.is_none() && before.is_state_given())
        throw py::value_error(what.text() + ": expected an array as long as the new one, because "
                                            "the state was the caller's so far, received None; "
                                            "pass state=");
    if (kernel.by_row) leaf.keep_state_by_row();
    const auto look_for_shared_memory = [&](Occupied& occupied) {
        for (std::size_t i = 0; i < leaves_.size(); ++i)
            (i == index ? leaf : leaves_[i]).occupy(occupied);
    };
    Occupied occupied;
    const auto occupy = [&] {
        occupied = Occupied();
        look_for_shared_memory(occupied);
        occupied.finish();
        check_apart_in_joint(look_for_shared_memory);
    };
    if (!state.is_none()) leaf.set_state(state);
    occupy();
    if (kernel.has_state && state.is_none()) {
        leaf.make_state(group.constant().initial_accumulator_value);
        copy_rows(before.state, leaf.state);
        occupy();
    }
    if (weight_average_) {
        leaf.make_average();
        leaf.refresh_average();
        if (plan_.items[index].average->started) copy_rows(before.average, leaf.average);
        occupy();
    }
    Item item;
    leaf.describe(item);
    if (item.average) item.average->started = plan_.items[index].average->started;
    item.options = plan_.items[index].options;
    item.t = plan_.items[index].t;
    set_kernel(item, *level_, kernel);
    std::swap(plan_.items[index], item);
    try {
        plan_.cut();
    } catch (...) { // no memory
        std::swap(plan_.items[index], item);
        throw;
    }
    std::swap(leaves_[index], leaf);
    std::swap(occupied_, occupied);
    forget_gradients();
    watched_.replace(index, array.ptr());
    ++layout_;
    // Here `leaf` lets the old arrays go, which may run code of the caller's.
}

} // namespace thalweg

// The averages of an optimizer's weights: made, let go, and looked at.
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "optimizer.hpp"
#include "run.hpp"

namespace thalweg {

py::object Optimizer::weight_average() const {
    return weight_average_ ? py::object(py::float_(*weight_average_)) : py::none();
}

void Optimizer::set_weight_average(const py::object& value) {
    constexpr const char* name = "weight_average";
    std::optional<double> wanted;
    if (!value.is_none()) wanted = option_number(*find_option(name), value, float32_, name);
    const auto is_number_alone = [&] { return wanted.has_value() == weight_average_.has_value(); };
    std::optional<Turn> turn;
    if (!is_number_alone() && !(paused_ && gate_.is_mine())) turn.emplace(gate_);
    if (is_number_alone()) { // or is by now; read when a step begins
        weight_average_ = wanted;
        return;
    }
    if (wanted)
        for (const Leaf& leaf : leaves_) leaf.check_unchanged(); // their layout is the averages'
    // Aside, so that a failure for want of memory leaves the old ones.
    std::vector<Leaf> leaves = leaves_;
    std::vector<std::unique_ptr<Average>> averages;
    Occupied occupied;
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        if (wanted)
            leaves[i].make_average();
        else
            leaves[i].drop_average();
        Item item;
        leaves[i].describe(item);
        averages.push_back(std::move(item.average));
        leaves[i].occupy(occupied);
    }
    occupied.finish();
    for (std::size_t i = 0; i < leaves.size(); ++i) std::swap(plan_.items[i].average, averages[i]);
    std::swap(leaves_, leaves);
    std::swap(occupied_, occupied);
    weight_average_ = wanted;
    choose_kernels();
    forget_gradients();
    ++layout_;
}

py::object Optimizer::average_of(std::size_t leaf) {
    const auto is_to_be_made = [&] {
        return leaves_.at(leaf).average && !plan_.items[leaf].average->started;
    };
    // Before the first step it is what the param is, which is not to be read while one runs.
    if (is_to_be_made()) {
        std::optional<Turn> turn;
        if (!gate_.is_mine()) turn.emplace(gate_);
        if (is_to_be_made()) {
            leaves_[leaf].check_unchanged();
            leaves_[leaf].refresh_average();
        }
    }
    const py::object average = leaves_.at(leaf).average;
    return average ? py::object(average.attr("view")()) : py::none();
}

std::vector<bool> Optimizer::averages_started() const {
    std::vector<bool> started;
    for (const Item& item : plan_.items) started.push_back(item.average && item.average->started);
    return started;
}

void Optimizer::set_averages_started(const std::vector<bool>& started) {
    if (started.size() != plan_.items.size())
        throw py::value_error("averages: expected a flag for each array");
    for (std::size_t i = 0; i < started.size(); ++i)
        if (plan_.items[i].average) plan_.items[i].average->started = started[i];
}

} // namespace thalweg

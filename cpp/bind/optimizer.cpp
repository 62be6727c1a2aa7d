#include "optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <utility>

#include "joint.hpp"
#include "judge.hpp"
#include "run.hpp"

namespace thalweg {

namespace {

std::string option_label(const Group& group, std::size_t index, std::size_t groups,
                         const std::string& name) {
    if (!group.called.empty()) return name + " of the group \"" + group.called + "\"";
    if (groups == 1) return name;
    return "param_groups[" + std::to_string(index) + "][\"" + name + "\"]";
}

} // namespace

std::string Optimizer::option_label(std::size_t group, const std::string& name) const {
    return thalweg::option_label(groups_.at(group), group, groups_.size(), name);
}

// New arrays and groups, checked and with their state, before anything is taken in.
struct Optimizer::Addition {
    std::vector<Leaf> leaves;
    std::vector<std::size_t> group_of;
    std::vector<Group> groups;
    Occupied occupied;
};

Optimizer::Addition Optimizer::check(const py::tuple& leaves, const py::tuple& groups) const {
    Addition added;
    std::vector<py::object> states;
    const std::size_t first_group = groups_.size();
    for (const py::handle each : leaves) {
        const auto leaf = py::cast<py::tuple>(each);
        auto path = leaf[0].cast<std::string>();
        if (joint_) path = path.empty() ? place_ : place_ + "." + path;
        added.leaves.emplace_back(std::move(path), leaf[1], operand_names);
        added.group_of.push_back(leaf[2].cast<std::size_t>());
        states.push_back(leaf.size() > 3 ? py::object(leaf[3]) : py::none());
        if (added.group_of.back() < first_group ||
            added.group_of.back() >= first_group + groups.size())
            throw py::index_error("group: expected one of those added, received " +
                                  std::to_string(added.group_of.back()) +
                                  "; did another thread add a group meanwhile?");
    }
    // First the params alone: state buffers are made only for those that are right.
    const auto occupy_with = [&](Occupied& occupied) {
        this->occupy(occupied);
        for (const Leaf& leaf : added.leaves) leaf.occupy(occupied);
    };
    const auto occupy = [&] {
        added.occupied = Occupied();
        occupy_with(added.occupied);
        added.occupied.finish();
        check_apart_in_joint(occupy_with);
    };
    occupy();
    for (const py::handle each : groups) {
        const auto group = py::cast<py::tuple>(each);
        added.groups.emplace_back(group[0].cast<std::string>());
        if (group.size() > 2) added.groups.back().called = group[2].cast<std::string>();
    }
    for (std::size_t i = 0; i < added.leaves.size(); ++i)
        added.groups[added.group_of[i] - first_group].float32 |=
            added.leaves[i].dtype == Dtype::float32;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        const auto group = py::cast<py::tuple>(groups[g]);
        const std::size_t total = first_group + groups.size();
        for (const py::handle entry : entries(group[1].cast<py::dict>())) {
            const auto pair = py::reinterpret_borrow<py::tuple>(entry);
            const auto name = pair[0].cast<std::string>();
            Group& its = added.groups[g];
            its.set(name, pair[1], thalweg::option_label(its, first_group + g, total, name));
        }
    }
    for (std::size_t i = 0; i < added.leaves.size(); ++i) {
        const Group& group = added.groups[added.group_of[i] - first_group];
        added.leaves[i].check_unchanged(); // the options may have run code of the caller's
        const Kernel& kernel = kernel_called(*level_, group.kernel);
        if (kernel.by_row) added.leaves[i].keep_state_by_row();
        if (weight_average_) added.leaves[i].make_average();
        if (!kernel.has_state) continue;
        if (states[i].is_none())
            added.leaves[i].make_state(group.constant().initial_accumulator_value);
        else
            added.leaves[i].set_state(states[i]);
    }
    occupy();
    return added;
}

void Optimizer::take(Addition added) {
    const std::size_t first = leaves_.size(), first_group = groups_.size();
    try {
        take_in(added, first);
    } catch (...) { // no memory
        leaves_.erase(leaves_.begin() + static_cast<std::ptrdiff_t>(first), leaves_.end());
        groups_.erase(groups_.begin() + static_cast<std::ptrdiff_t>(first_group), groups_.end());
        group_of_.resize(first);
        plan_.items.resize(first);
        throw;
    }
    occupied_ = std::move(added.occupied);
    ++layout_;
    for (const Leaf& leaf : leaves_) float32_ |= leaf.dtype == Dtype::float32;
}

void Optimizer::take_in(Addition& added, std::size_t first) {
    for (Group& group : added.groups) groups_.push_back(std::move(group));
    // A gradient that met none of the params so far may meet the new ones.
    for (Leaf& leaf : leaves_) leaf.forget_gradient();
    for (Leaf& leaf : added.leaves) leaves_.push_back(std::move(leaf));
    group_of_.insert(group_of_.end(), added.group_of.begin(), added.group_of.end());
    plan_.items.resize(leaves_.size());
    for (std::size_t i = first; i < leaves_.size(); ++i) {
        leaves_[i].describe(plan_.items[i]);
        plan_.items[i].options = &groups_[group_of_[i]].current;
    }
    choose_kernels();
    found_.resize(leaves_.size());
    bound_.resize(leaves_.size());
    frozen_.resize(leaves_.size());
    plan_.cut(); // the last that may fail
}

Optimizer::Optimizer(const py::object& tree, const py::tuple& leaves, const py::tuple& groups,
                     const py::object& bound, const Level& level)
    : tree_(tree, leaves.size()), level_(&level) {
    take(check(leaves, groups));
    is_bound_ = !bound.is_none();
    if (!is_bound_) return;
    try {
        for (Group& group : groups_) group.current.frozen = group.constant().frozen;
        note_frozen();
        tree_.collect(bound.ptr(), false, frozen_, bound_.data());
        bind(bound_, occupied_);
        for (std::size_t i = 0; i < leaves_.size(); ++i)
            if (frozen_[i] && !bound_[i]) unbound_.push_back(i);
    } catch (...) {
        for (PyObject*& grad : bound_) Py_CLEAR(grad);
        throw;
    }
}

void Optimizer::add_group(const py::object& tree, const py::tuple& leaves, const py::tuple& group,
                          const py::object& container) {
    std::optional<Turn> turn;
    if (!(paused_ && gate_.is_mine())) turn.emplace(gate_);
    if (is_bound_)
        throw py::value_error(
            "add_group: expected an optimizer whose step takes gradients, received "
            "one with bound buffers; make a new optimizer");
    Addition added = check(leaves, py::make_tuple(group));
    // The limits were checked for the dtypes there were.
    for (const char* name : {"max_norm", "max_array_norm", "norm_eps", "max_value"})
        if (const py::object value = limit(name); !value.is_none())
            option_number(*find_option(name), value, added.groups[0].float32, name);
    if (weight_average_)
        option_number(*find_option("weight_average"), weight_average(), added.groups[0].float32,
                      "weight_average");
    tree_.append(tree, leaves_.size() + leaves.size());
    try {
        Watch watched = watched_;
        std::vector<PyObject*> arrays = params();
        for (const Leaf& leaf : added.leaves) arrays.push_back(leaf.param.ptr());
        watched.add(container, {tree_.step(tree_.size() - 1)}, std::move(arrays));
        take(std::move(added));
        std::swap(watched_, watched);
    } catch (...) {
        tree_.drop_last();
        throw;
    }
}

Optimizer::~Optimizer() { clear(); }

void Optimizer::clear() {
    is_bound_ = false;
    plan_.items.clear();
    // Emptied before they are let go, which may run code that looks at this object.
    const auto leaves = std::exchange(leaves_, {});
    for (PyObject* grad : std::exchange(bound_, {})) Py_XDECREF(grad);
    watched_.clear();
    watched_grads_.clear();
    for (Group& group : groups_) group.clear();
}

int Optimizer::traverse(visitproc visit, void* arg) const {
    for (const Leaf& leaf : leaves_) {
        for (const py::object* each : {&leaf.param, &leaf.state, &leaf.average})
            Py_VISIT(each->ptr());
    }
    for (PyObject* grad : bound_) Py_VISIT(grad);
    for (const Group& group : groups_)
        if (const int stop = group.traverse(visit, arg)) return stop;
    for (const Watch* each : {&watched_, &watched_grads_})
        if (const int stop = each->traverse(visit, arg)) return stop;
    return tree_.traverse(visit, arg);
}

py::object Optimizer::grad_norm() const {
    return grad_norm_ >= 0 || grad_norm_ != grad_norm_ ? py::object(py::float_(grad_norm_))
                                                       : py::none();
}

py::tuple Optimizer::last_lr() const {
    py::list rates;
    for (std::size_t g = 0; g < groups_.size(); ++g) // one may be added meanwhile
        rates.append(std::isnan(groups_[g].last_lr) ? py::object(py::none())
                                                    : py::object(py::float_(groups_[g].last_lr)));
    return py::tuple(rates);
}

void Optimizer::set_limit(const std::string& name, const py::object& value) {
    const double number = limit_number(name, value, float32_);
    Limits limits = limits_;
    limits.*Limits::find(name) = number;
    if (limits.max_norm != 0 && limits.max_array_norm != 0)
        throw py::value_error(
            "max_array_norm: expected None beside max_norm, received both: gradients are clipped "
            "by one norm or each by its own; set the other to None first");
    Joint::check_limits(joint_limits_, place_, limits);
    limits_ = limits;
}

void Optimizer::set_unbound(const std::vector<std::size_t>& leaves) {
    for (const std::size_t i : leaves)
        if (i >= leaves_.size()) throw py::index_error("leaf");
    unbound_ = leaves;
}

std::string Optimizer::on_nonfinite() const {
    return nonfinite_names[static_cast<int>(limits_.on_nonfinite)];
}

void Optimizer::set_on_nonfinite(const py::object& value) {
    Limits limits = limits_;
    limits.on_nonfinite = nonfinite_called(value);
    Joint::check_limits(joint_limits_, place_, limits);
    limits_ = limits;
}

void Optimizer::forget_gradients() {
    for (Leaf& leaf : leaves_) leaf.forget_gradient();
}

void Optimizer::occupy(Occupied& occupied) const {
    for (const Leaf& leaf : leaves_) leaf.occupy(occupied);
}

void Optimizer::occupy_others(Occupied& occupied) const {
    const auto members = beside_.lock();
    if (!members) return;
    for (const Member& member : *members) {
        if (member.optimizer == this) continue;
        const Alone alone(member.optimizer->lock());
        member.optimizer->occupy(occupied);
    }
}

void Optimizer::join(const Joint* joint, const std::string& name,
                     std::weak_ptr<const Members> members) {
    joint_ = joint;
    beside_ = std::move(members);
    place_ = name;
    stepped_by_ = nullptr;
    for (Leaf& leaf : leaves_) leaf.path = leaf.path.empty() ? name : name + "." + leaf.path;
    tree_.name_below(name);
}

void Optimizer::leave_joint(const Joint* joint) noexcept {
    if (joint_ != joint) return;
    joint_ = nullptr;
    beside_.reset();
    joint_limits_ = {};
    stepped_by_ = nullptr;
    for (Leaf& leaf : leaves_) leaf.path.erase(0, std::min(leaf.path.size(), place_.size() + 1));
    forget_gradients();
    try {
        tree_.name_below("");
    } catch (...) { // no memory for the words of a message
    }
}

py::object Optimizer::state_of(std::size_t leaf) const {
    const py::object state = leaves_.at(leaf).state;
    // A view: whoever gives it another shape must not give it to the buffer.
    return state ? state.attr("view")() : py::none();
}

py::object Optimizer::bound_of(std::size_t leaf) const {
    PyObject* grad = bound_.at(leaf);
    return py::reinterpret_borrow<py::object>(grad ? grad : Py_None);
}

py::object Optimizer::lr() const {
    if (groups_.empty()) throw py::value_error("lr: expected groups, there are none");
    const py::object first = groups_[0].get("lr");
    if (groups_.size() == 1) return first;
    py::list rates;
    for (std::size_t g = 0; g < groups_.size(); ++g) rates.append(groups_[g].get("lr"));
    for (const py::handle rate : py::tuple(rates))
        if (rate.not_equal(first))
            throw py::value_error("lr: expected one for all groups, received " +
                                  std::string(py::str(rates)) + "; read param_groups[i]['lr']");
    return first;
}

void Optimizer::set_lr(py::handle value) {
    static const OptionSpec& spec = *find_option("lr");
    const bool is_schedule = PyCallable_Check(value.ptr()) != 0;
    double number = 0;
    if (!is_schedule) {
        py::object again = py::reinterpret_borrow<py::object>(value);
        for (std::size_t g = 0; g < groups_.size(); ++g) {
            if (g == 1) again = py::float_(number); // the caller's code has run once
            number = option_number(spec, again, groups_[g].float32, option_label(g, "lr"));
        }
    }
    if (groups_.size() == 1 && !is_schedule) {
        const py::object gone = groups_[0].set(spec, number, {});
        return;
    }
    std::vector<py::object> gone(groups_.size());
    for (std::size_t g = 0; g < gone.size(); ++g)
        gone[g] =
            is_schedule
                ? groups_[g].set(spec, groups_[g].constant().lr, // unseen while there is a schedule
                                 py::reinterpret_borrow<py::object>(value))
                : groups_[g].set(spec, number, {});
}

py::object Optimizer::get_option(std::size_t group, const std::string& name) const {
    return groups_.at(group).get(name);
}

void Optimizer::set_option(std::size_t group, const std::string& name, const py::object& value) {
    groups_.at(group).set(name, value, option_label(group, name));
}

void Optimizer::set_counters(std::uint64_t step_count, const std::vector<std::uint64_t>& steps,
                             std::uint64_t skipped_steps, const py::object& grad_norm,
                             const py::object& last_lr) {
    if (steps.size() != plan_.items.size())
        throw py::value_error("steps: expected one for each array");
    std::vector<double> rates(groups_.size(), std::numeric_limits<double>::quiet_NaN());
    if (!last_lr.is_none()) {
        const auto given = last_lr.cast<py::tuple>();
        if (given.size() != rates.size())
            throw py::value_error("last_lr: expected one for each group");
        for (std::size_t g = 0; g < rates.size(); ++g)
            if (!given[g].is_none()) rates[g] = given[g].cast<double>();
    }
    grad_norm_ = grad_norm.is_none() ? -1.0 : grad_norm.cast<double>();
    step_count_ = step_count;
    skipped_steps_ = skipped_steps;
    for (std::size_t i = 0; i < steps.size(); ++i) plan_.items[i].t = steps[i];
    for (std::size_t g = 0; g < rates.size(); ++g) groups_[g].last_lr = rates[g];
}

void Optimizer::use_level(const Level& level) {
    const Turn turn(gate_);
    level_ = &level;
    choose_kernels();
}

std::vector<PyObject*> Optimizer::params() const {
    std::vector<PyObject*> arrays;
    for (const Leaf& leaf : leaves_) arrays.push_back(leaf.param.ptr());
    return arrays;
}

void Optimizer::watch(const py::object& params, const py::object& grads) {
    watched_.add(params, {}, this->params());
    if (is_bound_) watched_grads_.add(grads, {}, bound_);
}

void Optimizer::watch_copies(const Optimizer& other, const py::dict& memo) {
    watched_.add_copies(other.watched_, memo, params());
    if (is_bound_) watched_grads_.add_copies(other.watched_grads_, memo, bound_);
}

void Optimizer::choose_kernels() {
    for (std::size_t i = 0; i < plan_.items.size(); ++i) {
        Item& item = plan_.items[i];
        set_kernel(item, *level_, kernel_called(*level_, groups_[group_of_[i]].kernel));
    }
}

} // namespace thalweg

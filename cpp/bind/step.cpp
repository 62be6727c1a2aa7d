// A step of one optimizer, in the phases that a step over several shares.
#include <algorithm>
#include <stdexcept>

#include "judge.hpp"
#include "optimizer.hpp"
#include "run.hpp"

namespace thalweg {

bool Optimizer::step(PyObject* grads, PyObject* scale, bool partial) {
    const Turn turn(gate_);
    check_ready(grads == nullptr);
    const double factor = scale_of(scale, float32_);
    // A copy, because a schedule, a mapping or, while the GIL is free, another thread may set one.
    const Limits limits = limits_;
    begin(factor, limits, nullptr);
    if (!grads) {
        check_buffers();
        bind(bound_, occupied_);
        check_zeroed(bound_);
        return run_alone(limits);
    }
    const Found found(*this);
    collect(grads, partial);
    bind_found(partial, occupied_);
    check_zeroed(found_);
    return run_alone(limits);
}

void Optimizer::begin_collecting() {
    if (collecting_) let_go(); // left behind by a thread that a fork did not bring along
    collecting_ = true;
}

void Optimizer::let_go() {
    if (given_.empty())
        for (PyObject*& grad : found_) Py_CLEAR(grad);
    else
        for (const std::size_t i : given_) Py_CLEAR(found_[i]);
    given_.clear();
    collecting_ = false;
}

double scale_of(PyObject* scale, bool float32) {
    return scale ? option_number(*find_option("scale"), scale, float32, "scale") : 1.0;
}

void Optimizer::check_ready(bool needs_buffers) {
    if (!refusal_.empty()) throw std::runtime_error(refusal_);
    if (leaves_.empty()) throw py::value_error("step: expected arrays, received none to update");
    if (needs_buffers && !is_bound_)
        throw py::type_error("step: expected gradients, received none, and no buffers are bound; "
                             "call step(grads), or bind buffers once with grads=... when the "
                             "optimizer is made");
    watched_.look(tree_, leaves_);
    if (needs_buffers) watched_grads_.look(tree_, leaves_);
}

void Optimizer::set_zero_grads(const py::object& value) {
    const bool wanted = bool_of(value, "zero_grads");
    if (wanted && is_bound_) {
        std::optional<Turn> turn; // np.shares_memory may let others run
        if (!gate_.is_mine()) turn.emplace(gate_);
        Zeroed zeroed;
        for (std::size_t i = 0; i < leaves_.size(); ++i)
            if (bound_[i]) zeroed.add(bound_[i], leaves_[i].path, false, true);
        zeroed.check();
    }
    zero_grads_ = wanted;
}

void Optimizer::begin(double scale, const Limits& limits, const Joint* joint) {
    if (joint != stepped_by_) { // other limits hold, and a gradient may meet other arrays
        forget_gradients();
        stepped_by_ = joint;
    }
    plan_.zeroing = zero_grads_;
    plan_.averaged.weight_average = weight_average_.value_or(0.0);
    bool changed = false;
    for (Group& group : groups_) {
        if (group.is_fresh(scale, limits)) continue;
        group.begin_step(scale, limits);
        changed = true;
    }
    if (!changed) return;
    for (Group& group : groups_) group.ask_schedules(step_count_);
    note_frozen();
}

void Optimizer::check_buffers() const {
    for (const std::size_t i : unbound_)
        if (!frozen_[i])
            throw py::value_error(label("grads", leaves_[i].path) +
                                  ": expected a buffer, received none: the array was frozen "
                                  "when the buffers were bound; make a new optimizer");
}

void Optimizer::note_frozen() {
    for (std::size_t i = 0; i < leaves_.size(); ++i)
        frozen_[i] = groups_[group_of_[i]].current.frozen;
}

void Optimizer::bind(const std::vector<PyObject*>& grads, const Occupied& occupied) {
    plan_.choose_all();
    plan_.averaging = weight_average_.has_value();
    for (std::size_t i = 0; i < leaves_.size(); ++i) bind_one(i, grads[i], occupied);
}

void Optimizer::bind_found(bool partial, const Occupied& occupied) {
    if (partial)
        bind_given(occupied);
    else
        bind(found_, occupied);
}

// In the time of the arrays that take part; the others are not looked at.
void Optimizer::bind_given(const Occupied& occupied) {
    // In the order of the params, for the norm; each once, whatever the keys say they are equal to.
    if (!std::is_sorted(given_.begin(), given_.end())) std::sort(given_.begin(), given_.end());
    given_.erase(std::unique(given_.begin(), given_.end()), given_.end());
    plan_.choose(given_);
    plan_.averaging = weight_average_.has_value();
    for (const std::size_t i : given_) bind_one(i, found_[i], occupied);
}

bool Optimizer::run_alone(const Limits& limits) {
    if (run_short(plan_, limits)) {
        step_count_ += 1;
        note_rates();
        return true;
    }
    Part part{&plan_, limits};
    const Parts parts{&part, 1};
    const std::vector<Leaf>* const leaves = &leaves_;
    // Without the GIL where it is long.
    const bool threads_given = run(parts, {&leaves, 1}, [&](std::size_t bytes) {
        take_part(part, bytes, [this](double clip) { set_clip(clip); });
        count(part);
    });
    note(part);
    if (!threads_given) warn_of_refused_threads();
    if (part.refused) refuse_nonfinite(parts, {&leaves, 1}, operand_names.grad);
    return part.taken;
}

void Optimizer::set_clip(double clip) {
    for (Group& group : groups_) group.current.clip = clip;
}

void Optimizer::count(const Part& part) {
    step_count_ += part.taken;
    skipped_steps_ += !part.taken && !part.refused;
}

void Optimizer::note(const Part& part) {
    if (!part.taken) return;
    if (part.limits.max_norm != 0) grad_norm_ = part.norm;
    note_rates();
}

} // namespace thalweg

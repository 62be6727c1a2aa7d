#include "joint.hpp"

#include <algorithm>
#include <utility>

#include "instance.hpp"
#include "judge.hpp"
#include "run.hpp"

namespace thalweg {

// All gates at once, in the order in which the optimizers were made: two joints, or a joint and
// whoever holds more than one, cannot wait for each other.
class Joint::Turns {
  public:
    explicit Turns(Joint& joint) : joint_(joint) { joint_.enter_all(&Optimizer::enter_step); }
    ~Turns() { joint_.leave(); }
    Turns(const Turns&) = delete;
    Turns& operator=(const Turns&) = delete;

  private:
    Joint& joint_;
};

// What the step has found, let go however it ends; a fork leaves the same as Optimizer::Found.
class Joint::Gradients {
  public:
    explicit Gradients(Joint& joint) : joint_(joint) {
        clear();
        for (const Member& member : *joint_.members_) member.optimizer->begin_collecting();
    }
    ~Gradients() {
        clear();
        for (const Member& member : *joint_.members_) member.optimizer->let_go();
    }
    Gradients(const Gradients&) = delete;
    Gradients& operator=(const Gradients&) = delete;

  private:
    void clear() {
        for (PyObject*& grad : joint_.grads_) Py_CLEAR(grad);
    }
    Joint& joint_;
};

void Joint::enter() { enter_all(&Optimizer::enter); }

void Joint::enter_all(void (Optimizer::*go_in)()) {
    std::size_t entered = 0;
    try {
        for (; entered < in_order_.size(); ++entered) {
            const Alone alone(in_order_[entered]->lock());
            (in_order_[entered]->*go_in)();
        }
    } catch (...) {
        leave_first(entered);
        throw;
    }
}

void Joint::leave() { leave_first(in_order_.size()); }

void Joint::leave_first(std::size_t count) {
    while (count-- != 0) {
        const Alone alone(in_order_[count]->lock());
        in_order_[count]->leave();
    }
}

std::shared_ptr<const Members> Joint::none() {
    static constinit const Members nothing;
    return {std::shared_ptr<const Members>(), &nothing};
}

Joint::Joint(const py::dict& optimizers) {
    py::dict spec;
    const auto members = std::make_shared<Members>();
    members_ = members;
    for (const py::handle entry : entries(optimizers)) {
        const auto pair = py::reinterpret_borrow<py::tuple>(entry);
        if (!py::isinstance<Optimizer>(pair[1]))
            throw py::type_error("Joint: expected optimizers, received " +
                                 received(py::object(pair[1]).ptr()));
        spec[pair[0]] = members_->size();
        members->push_back({pair[0].cast<std::string>(), pair[1],
                            &instance_of<Optimizer>(py::object(pair[1]).ptr())});
    }
    if (members_->empty())
        throw py::value_error("Joint: expected optimizers by name, received none");
    tree_ = Tree(spec, members_->size());
    for (const Member& member : *members_) in_order_.push_back(member.optimizer);
    std::sort(in_order_.begin(), in_order_.end(),
              [](const Optimizer* a, const Optimizer* b) { return a->number_ < b->number_; });
    for (std::size_t i = 1; i < in_order_.size(); ++i)
        if (in_order_[i] == in_order_[i - 1])
            throw py::value_error("Joint: expected each optimizer once, received one twice");
    const Turns turns(*this);
    for (const Member& member : *members_) {
        const Alone alone(member.optimizer->lock());
        if (member.optimizer->joint_)
            throw py::value_error("Joint: expected an optimizer that is in no Joint, received \"" +
                                  member.name +
                                  "\", which is in one; let the other Joint go first (del joint)");
    }
    grads_.resize(members_->size());
    optional_.resize(members_->size());
    parts_.reserve(members_->size());
    stepped_.reserve(members_->size());
    leaves_.reserve(members_->size());
    layouts_.resize(members_->size());
    try {
        for (const Member& member : *members_) {
            const Alone alone(member.optimizer->lock());
            member.optimizer->join(this, member.name, members_);
        }
        look_at_arrays();
    } catch (...) {
        let_go(*members_);
        throw;
    }
}

void Joint::clear() {
    const auto gone = std::exchange(members_, none());
    in_order_.clear();
    let_go(*gone);
}

void Joint::let_go(const Members& members) const {
    for (const Member& member : members) {
        const Alone alone(member.optimizer->lock());
        member.optimizer->leave_joint(this);
    }
}

int Joint::traverse(visitproc visit, void* arg) const {
    for (const Member& member : *members_) Py_VISIT(member.object.ptr());
    return tree_.traverse(visit, arg);
}

// Where all arrays lie, if that has changed: no two may share memory, and no gradient with any.
void Joint::look_at_arrays() {
    bool changed = false;
    for (std::size_t i = 0; i < members_->size(); ++i)
        changed |= layouts_[i] != (*members_)[i].optimizer->layout_;
    if (!changed) return;
    Occupied occupied;
    for (const Member& member : *members_) member.optimizer->occupy(occupied);
    occupied.finish();
    occupied_ = std::move(occupied);
    for (std::size_t i = 0; i < members_->size(); ++i) {
        (*members_)[i].optimizer->forget_gradients();
        layouts_[i] = (*members_)[i].optimizer->layout_;
    }
}

bool Joint::step(PyObject* grads, PyObject* scale, bool partial) {
    const Turns turns(*this);
    if (members_->empty()) throw py::value_error("step: expected optimizers, received none");
    for (const Member& member : *members_) {
        const Alone alone(member.optimizer->lock());
        member.optimizer->check_ready(grads == nullptr);
    }
    look_at_arrays();
    const double factor = scale_of(scale, float32());
    const Limits limits = limits_; // a copy, as in Optimizer::step
    const Gradients gradients(*this);
    if (grads) tree_.collect(grads, partial, optional_, grads_.data());
    parts_.clear();
    stepped_.clear();
    leaves_.clear();
    for (std::size_t i = 0; i < members_->size(); ++i) {
        if (grads && !grads_[i]) continue;
        Optimizer& each = *(*members_)[i].optimizer;
        const Alone alone(each.lock());
        const Limits own = each.limits_;
        Limits both = own;
        if (limits.max_norm != 0) both.max_norm = limits.max_norm;
        if (limits.judge()) both.on_nonfinite = limits.on_nonfinite;
        each.begin(factor, both, this);
        parts_.push_back({&each.plan_, own});
        stepped_.push_back(&each);
        leaves_.push_back(&each.leaves_);
    }
    std::size_t k = 0;
    for (std::size_t i = 0; i < members_->size(); ++i) {
        if (grads && !grads_[i]) continue;
        if (grads)
            stepped_[k]->collect(grads_[i], partial);
        else
            stepped_[k]->check_buffers();
        ++k;
    }
    for (Optimizer* each : stepped_)
        if (grads)
            each->bind_found(partial, occupied_);
        else
            each->bind(each->bound_, occupied_);
    check_zeroed(grads == nullptr);
    return stepped_.empty() || run(limits);
}

void Joint::check_zeroed(bool bound) {
    if (std::none_of(stepped_.begin(), stepped_.end(),
                     [](const Optimizer* each) { return each->plan_.zeroing; }))
        return;
    zeroed_.begin();
    for (const Optimizer* each : stepped_)
        each->add_gradients(zeroed_, bound ? each->bound_ : each->found_);
    zeroed_.check();
}

bool Joint::run(const Limits& limits) {
    double norm = grad_norm_;
    Outcome outcome{};
    const bool threads_given = thalweg::run(parts_, leaves_, [&](std::size_t bytes) {
        outcome = take_step(parts_, bytes, limits, norm,
                            [this](std::size_t i, double clip) { stepped_[i]->set_clip(clip); });
        // What a part's own limits leave out is that optimizer's to count.
        const bool by_itself = outcome == Outcome::skipped && !limits.judge();
        if (outcome == Outcome::applied || by_itself)
            for (std::size_t i = 0; i < parts_.size(); ++i) stepped_[i]->count(parts_[i]);
        skipped_steps_ += outcome == Outcome::skipped && !by_itself;
    });
    if (outcome == Outcome::applied) {
        if (limits.max_norm != 0) grad_norm_ = norm;
        for (std::size_t i = 0; i < parts_.size(); ++i) {
            const Alone alone(stepped_[i]->lock());
            stepped_[i]->note(parts_[i]);
        }
    }
    if (!threads_given) warn_of_refused_threads();
    if (outcome == Outcome::refused) refuse_nonfinite(parts_, leaves_, operand_names.grad);
    return outcome == Outcome::applied &&
           std::all_of(parts_.begin(), parts_.end(), [](const Part& part) { return part.taken; });
}

bool Joint::float32() const {
    return std::any_of(members_->begin(), members_->end(), [](const Member& member) {
        const Alone alone(member.optimizer->lock());
        return member.optimizer->float32_;
    });
}

py::object Joint::grad_norm() const {
    return grad_norm_ >= 0 || grad_norm_ != grad_norm_ ? py::object(py::float_(grad_norm_))
                                                       : py::none();
}

std::string Joint::on_nonfinite() const {
    return nonfinite_names[static_cast<int>(limits_.on_nonfinite)];
}

void Joint::set_limit(const std::string& name, const py::object& value) {
    const double number = limit_number(name, value, float32());
    Limits limits = limits_;
    limits.*Limits::find(name) = number;
    set_limits(limits);
}

void Joint::set_on_nonfinite(const py::object& value) {
    const OnNonfinite word = nonfinite_called(value);
    Limits limits = limits_;
    limits.on_nonfinite = word;
    set_limits(limits);
}

// All members know them, or none.
void Joint::set_limits(const Limits& limits) {
    std::size_t told = 0;
    const auto tell = [&](const Member& member, const Limits& what) {
        member.optimizer->joint_limits_ = what;
    };
    try {
        for (; told < members_->size(); ++told) {
            const Member& member = (*members_)[told];
            const Alone alone(member.optimizer->lock());
            check_limits(limits, member.name, member.optimizer->limits_);
            tell(member, limits);
        }
    } catch (...) {
        while (told-- != 0) {
            const Alone alone((*members_)[told].optimizer->lock());
            tell((*members_)[told], limits_);
        }
        throw;
    }
    limits_ = limits;
}

void Joint::check_limits(const Limits& mine, const std::string& name, const Limits& limits) {
    const char* both = nullptr;
    if (mine.max_norm != 0 && limits.max_norm != 0) both = "max_norm";
    if (mine.max_norm != 0 && limits.max_array_norm != 0) both = "max_norm and max_array_norm";
    if (mine.judge() && limits.judge()) both = "on_nonfinite";
    if (both)
        throw py::value_error(std::string(both) +
                              ": expected it to be set by the Joint or by its optimizers, received "
                              "both, the other by \"" +
                              name + "\"; a limit of the Joint holds for all: drop one of the two");
}

} // namespace thalweg

// The native base of the Python optimizers: arrays, groups, and a step that is all or nothing.
#pragma once
#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "gate.hpp"
#include "gil.hpp"
#include "group.hpp"
#include "leaf.hpp"
#include "lock.hpp"
#include "overlap.hpp"
#include "step/level.hpp"
#include "step/plan.hpp"
#include "tree.hpp"
#include "watch.hpp"
#include "zeroed.hpp"

namespace thalweg {

constexpr Names operand_names{"params", "grads", "state"};

// What step(scale=...) says; null: 1.
double scale_of(PyObject* scale, bool float32);

class Joint;
struct Member;
using Members = std::vector<Member>;

class Optimizer {
    friend class Joint; // goes through the phases of its members' steps

  public:
    // leaves: (path, param, group index, state or None for one of ours) each; groups: (kernel,
    // options) each; bound: gradients for a step without arguments, or None.
    Optimizer(const py::object& tree, const py::tuple& leaves, const py::tuple& groups,
              const py::object& bound, const Level& level);
    ~Optimizer();
    Optimizer(const Optimizer&) = delete;
    Optimizer& operator=(const Optimizer&) = delete;
    // pybind11 asks it for raw memory when a method is called on an object whose __init__ never
    // ran; real ones are made by ::new.
    static void* operator new(std::size_t) {
        throw py::type_error("the optimizer was never initialised; call super().__init__(params, "
                             "...) in the subclass");
    }

    // Takes in one more tree of arrays, with one group, behind the others; all or nothing.
    // `container` is watched if it is one, see watch().
    void add_group(const py::object& tree, const py::tuple& leaves, const py::tuple& group,
                   const py::object& container);

    // Puts another array, of other height or not, in the place of a leaf's; rows that both have
    // keep their state. `state` is the caller's own, or None. All or nothing.
    void replace(std::size_t leaf, const py::object& array, const py::object& state);

    // False: the step was skipped. `grads` is null for the bound ones, `scale` is null for 1.
    bool step(PyObject* grads, PyObject* scale, bool partial);

    std::uint64_t step_count() const { return step_count_; }
    std::uint64_t skipped_steps() const { return skipped_steps_; }
    py::object grad_norm() const;
    py::tuple last_lr() const;
    py::object limit(const std::string& name) const { return limit_of(limits_, name); }
    void set_limit(const std::string& name, const py::object& value);
    std::string on_nonfinite() const;
    void set_on_nonfinite(const py::object& value);
    bool zero_grads() const { return zero_grads_; }
    void set_zero_grads(const py::object& value);
    py::object weight_average() const;
    void set_weight_average(const py::object& value);
    py::object average_of(std::size_t leaf);
    // Which averages have taken a step.
    std::vector<bool> averages_started() const;
    void set_averages_started(const std::vector<bool>& started);
    std::uint64_t steps_of(std::size_t leaf) const { return plan_.items.at(leaf).t; }
    py::object state_of(std::size_t leaf) const;
    py::object bound_of(std::size_t leaf) const;
    bool is_bound() const { return is_bound_; }
    // Leaves without a buffer because they were frozen when the others were bound.
    std::vector<std::size_t> unbound() const { return unbound_; }
    void set_unbound(const std::vector<std::size_t>& leaves);
    // Of all groups.
    py::object lr() const;
    void set_lr(py::handle value);
    py::object get_option(std::size_t group, const std::string& name) const;
    void set_option(std::size_t group, const std::string& name, const py::object& value);
    // Between enter() and leave(), or before anyone else knows the optimizer.
    void set_counters(std::uint64_t step_count, const std::vector<std::uint64_t>& steps,
                      std::uint64_t skipped_steps, const py::object& grad_norm,
                      const py::object& last_lr);
    void use_level(const Level& level);

    // Looks, step by step, whether the arrays are where they were in these containers: those of the
    // params and those of the bound gradients or None.
    void watch(const py::object& params, const py::object& grads);
    // The same in the copies of the containers that `other` watches.
    void watch_copies(const Optimizer& other, const py::dict& memo);
    bool is_watching() const { return !watched_.is_empty(); }

    // Between the two no other thread steps, nor does this one.
    void enter() {
        gate_.enter();
        paused_ = true;
    }
    void enter_step() { gate_.enter(); }
    void leave() {
        paused_ = false;
        gate_.leave();
    }
    // Steps raise RuntimeError with this message; "": they do not.
    void refuse_steps(const std::string& why) { refusal_ = why; }
    std::string refusal() const { return refusal_; }

    int traverse(visitproc visit, void* arg) const;
    void clear();

    // Whoever calls a method is alone with it.
    const Lock& lock() const { return lock_; }

  private:
    // What a Joint holds it by.
    void join(const Joint* joint, const std::string& name, std::weak_ptr<const Members> members);
    void leave_joint(const Joint* joint) noexcept;
    void forget_gradients();
    void begin_collecting();
    void let_go();
    void occupy(Occupied& occupied) const;

    // Lets the gradients of a step go, however it ends.
    class Found {
      public:
        explicit Found(Optimizer& opt) : opt_(opt) { opt_.begin_collecting(); }
        ~Found() { opt_.let_go(); }
        Found(const Found&) = delete;
        Found& operator=(const Found&) = delete;

      private:
        Optimizer& opt_;
    };
    std::string option_label(std::size_t group, const std::string& name) const;
    struct Addition;
    Addition check(const py::tuple& leaves, const py::tuple& groups) const;
    // What `occupy` adds, and what the others of the Joint have, share no memory.
    template <class Occupy> void check_apart_in_joint(const Occupy& occupy) const {
        if (!joint_) return;
        Occupied all;
        occupy(all);
        occupy_others(all);
        all.finish();
    }
    void occupy_others(Occupied& occupied) const; // those of the Joint
    void take(Addition added);
    void take_in(Addition& added, std::size_t first);
    void choose_kernels();
    std::vector<PyObject*> params() const;
    void note_frozen();

    // The phases of a step, its gate held from the first to the last. Up to where its gradients are
    // found, code of the caller's may run; from bind() on, none.
    void check_ready(bool needs_buffers);
    void begin(double scale, const Limits& limits, const Joint* joint);
    void collect(PyObject* grads, bool partial) {
        tree_.collect(grads, partial, frozen_, found_.data(), partial ? &given_ : nullptr);
    }
    void check_buffers() const;
    void bind(const std::vector<PyObject*>& grads, const Occupied& occupied);
    void bind_found(bool partial, const Occupied& occupied);
    void bind_given(const Occupied& occupied);
    void bind_one(std::size_t leaf, PyObject* grad, const Occupied& occupied) {
        Item& item = plan_.items[leaf];
        item.active = grad != nullptr && !item.options->frozen;
        if (item.options->frozen) return;
        leaves_[leaf].check_unchanged();
        if (!grad) return;
        leaves_[leaf].bind_gradient(grad, occupied, item);
        plan_.has_sparse |= item.sparse;
    }
    // Asks `zeroed` about the gradients of the step; those bound are `grads`.
    void add_gradients(Zeroed& zeroed, const std::vector<PyObject*>& grads) const {
        plan_.each_active([&](std::size_t i) {
            zeroed.add(grads[i], leaves_[i].path, plan_.items[i].linear, plan_.zeroing);
        });
    }
    void check_zeroed(const std::vector<PyObject*>& grads) {
        if (!plan_.zeroing) return;
        zeroed_.begin();
        add_gradients(zeroed_, grads);
        zeroed_.check();
    }
    bool run_alone(const Limits& limits);
    void set_clip(double clip);
    void count(const Part& part); // in the stretch that no fork cuts in two
    void note(const Part& part);  // with the GIL: others may ask for it at any time
    void note_rates() {
        for (Group& group : groups_) group.note_rate();
    }

    Tree tree_;
    std::vector<Leaf> leaves_;
    std::vector<std::size_t> group_of_;
    std::deque<Group> groups_; // the items point to their options
    Plan plan_;
    Occupied occupied_;
    std::vector<PyObject*> found_, bound_;
    Watch watched_{Watch::Kind::params}, watched_grads_{Watch::Kind::grads};
    std::vector<std::size_t> given_; // the leaves that a partial step has found gradients for
    std::vector<bool> frozen_;       // by leaf, as of this step
    std::vector<std::size_t> unbound_;
    Zeroed zeroed_;
    bool zero_grads_ = false;
    std::optional<double> weight_average_; // none: there are no averages
    bool is_bound_ = false, collecting_ = false, paused_ = false;
    bool float32_ = false;
    Limits limits_;
    Count step_count_ = 0, skipped_steps_ = 0;
    double grad_norm_ = -1; // none yet
    std::string refusal_;   // of any step
    // In the order in which optimizers are made.
    const std::uint64_t number_ = ++made_;
    inline static std::atomic<std::uint64_t> made_ = 0;
    std::uint64_t layout_ = 1;            // changes with its arrays
    const Joint* joint_ = nullptr;        // that it is in; to tell it from others
    std::weak_ptr<const Members> beside_; // those of the Joint
    Limits joint_limits_;                 // the Joint's
    const Joint* stepped_by_ = nullptr;   // at the last step; null: by itself
    std::string place_;                   // its name in the Joint
    const Level* level_;
    Gate gate_;
    Lock lock_;
};

} // namespace thalweg

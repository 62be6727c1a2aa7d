// Several optimizers stepped as one: one norm, one decision, all or nothing across them.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "lock.hpp"
#include "optimizer.hpp"

namespace thalweg {

struct Member {
    std::string name;
    py::object object;
    Optimizer* optimizer;
};

// What it does with a member it does alone in that member, or with the gate of it held.
class Joint {
  public:
    // By name; each optimizer is in one joint at a time.
    explicit Joint(const py::dict& optimizers);
    ~Joint() { clear(); }
    Joint(const Joint&) = delete;
    Joint& operator=(const Joint&) = delete;
    static void* operator new(std::size_t) {
        throw py::type_error("the Joint was never initialised; call super().__init__(...) in the "
                             "subclass");
    }

    // As Optimizer::step; `grads` is a mapping by name. An optimizer without gradients takes no
    // part.
    bool step(PyObject* grads, PyObject* scale, bool partial);

    // Between the two no other thread steps a member.
    void enter();
    void leave();
    void set_counters(std::uint64_t skipped_steps, const py::object& grad_norm) {
        grad_norm_ = grad_norm.is_none() ? -1.0 : grad_norm.cast<double>();
        skipped_steps_ = skipped_steps;
    }
    std::uint64_t skipped_steps() const { return skipped_steps_; }
    py::object grad_norm() const;
    py::object limit(const std::string& name) const { return limit_of(limits_, name); }
    void set_limit(const std::string& name, const py::object& value);
    std::string on_nonfinite() const;
    void set_on_nonfinite(const py::object& value);

    // Throws ValueError if the member of that name may not have `limits` beside the joint's,
    // `mine`.
    static void check_limits(const Limits& mine, const std::string& name, const Limits& limits);

    const Lock& lock() const { return lock_; }

    int traverse(visitproc visit, void* arg) const;
    void clear();

  private:
    class Turns;
    class Gradients;
    void set_limits(const Limits& limits);
    void enter_all(void (Optimizer::*go_in)());
    void leave_first(std::size_t count);
    void let_go(const Members& members) const;
    static std::shared_ptr<const Members> none(); // takes no memory
    bool float32() const;
    void look_at_arrays();
    void check_zeroed(bool bound);
    bool run(const Limits& limits);

    Tree tree_;
    std::shared_ptr<const Members> members_ = none();
    std::vector<Optimizer*> in_order_; // in which their gates are taken, one for all joints
    std::vector<std::uint64_t> layouts_;
    Occupied occupied_;
    // Of the step at hand.
    std::vector<PyObject*> grads_;
    std::vector<bool> optional_;
    std::vector<Part> parts_;
    std::vector<Optimizer*> stepped_;
    std::vector<const std::vector<Leaf>*> leaves_;
    Zeroed zeroed_;

    Limits limits_;
    Count skipped_steps_ = 0;
    double grad_norm_ = -1; // none yet
    Lock lock_;
};

void define_joint(py::module_& m);

} // namespace thalweg

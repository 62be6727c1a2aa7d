// Several optimizers stepped as one: one norm, one decision, all or nothing across them.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "optimizer.hpp"

namespace thalweg {

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

    // Throws ValueError if a member may not have these limits beside the joint's.
    void check_limits(const std::string& name, const Limits& limits) const {
        check_limits(limits_, name, limits);
    }
    // The arrays of all members but this one.
    void occupy_others(const Optimizer& but, Occupied& occupied) const;

    int traverse(visitproc visit, void* arg) const;
    void clear();

  private:
    struct Member {
        std::string name;
        py::object object;
        Optimizer* optimizer;
    };
    class Turns;
    class Gradients;
    static void check_limits(const Limits& mine, const std::string& name, const Limits& limits);
    void set_limits(const Limits& limits);
    bool float32() const;
    void look_at_arrays();
    bool run(const Limits& limits);

    Tree tree_;
    std::vector<Member> members_;
    std::vector<Optimizer*> in_order_; // in which their gates are taken, one for all joints
    std::vector<std::uint64_t> layouts_;
    Occupied occupied_;
    // Of the step at hand.
    std::vector<PyObject*> grads_;
    std::vector<bool> optional_;
    std::vector<Part> parts_;
    std::vector<Optimizer*> stepped_;
    std::vector<const std::vector<Leaf>*> leaves_;

    Limits limits_;
    std::uint64_t skipped_steps_ = 0;
    double grad_norm_ = -1; // none yet
};

void define_joint(py::module_& m);

} // namespace thalweg

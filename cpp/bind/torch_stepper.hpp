// The native part of thalweg.torch's optimizers: a step over the params of a torch optimizer, read
// from its own param_groups and state. It owns nothing of them; what it keeps is how they lay.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "gate.hpp"
#include "lock.hpp"
#include "step/places.hpp"
#include "torch_states.hpp"

namespace thalweg {

class TorchStepper {
  public:
    explicit TorchStepper(const std::string& rule);
    TorchStepper(const TorchStepper&) = delete;
    TorchStepper& operator=(const TorchStepper&) = delete;

    // pybind11 asks it for raw memory when a method is called on an object whose __init__ never
    // ran; real ones are made by ::new.
    static void* operator new(std::size_t) {
        throw py::type_error("TorchStepper: expected an object that was initialised");
    }

    // Steps all params that have a gradient, or none. True: done, or skipped. None: hooks or the
    // profiler want to see the step. A list of (group, index, why): these are for torch's own code;
    // nothing has changed. `left_out` holds (group, index) pairs, or is null; `watchable` false: do
    // not look for hooks.
    py::object step(PyObject* optimizer, bool watchable, PyObject* left_out);
    // For each param (group, index, why): why is None where a step here takes it.
    py::list explain(PyObject* optimizer);
    // Reads the groups' options, and throws for those of ours that are none.
    void check(PyObject* optimizer);
    // Lets all gradients go. False: the profiler wants to see it.
    bool zero_grad(PyObject* optimizer);

    std::uint64_t skipped_steps() const { return skipped_steps_; }
    py::object grad_norm() const {
        return has_norm_ ? py::object(py::float_(grad_norm_)) : py::none();
    }

    const Lock& lock() const { return lock_; }

  private:
    struct Refused {
        std::size_t group, index;
        const char* why;
    };

    PyObject* read_groups(PyObject* dict, TorchHeld& held);
    // Looks at every param and its operands; fills the plan, or refused_.
    void collect(PyObject* optimizer, PyObject* dict, PyObject* left_out, TorchHeld& held);
    const char* look_at(TorchGroup& group, PyObject* options, PyObject* param, PyObject* grad,
                        std::size_t i, TorchHeld& held);
    const char* look_at_sparse(TorchGroup& group, TorchLeaf& leaf, PyObject* param, PyObject* grad,
                               TorchHeld& held);
    bool scale(PyObject* dict);
    bool are_still() const;
    void run(TorchHeld& held);
    std::vector<PyObject*> stepped(TorchHeld& held) const;
    std::string name_of(std::size_t i) const;
    [[noreturn]] void refuse_nonfinite(Part& part) const;

    const TorchRule rule_;
    const Torch& torch_;
    TorchStates states_;
    const Level* level_ = nullptr;
    std::deque<TorchGroup> groups_;
    std::deque<TorchLeaf> leaves_;
    std::vector<std::size_t> first_; // leaf of each group, and the end
    std::vector<PyObject*> params_;  // of each group, in this step
    bool cut_ = true;
    Plan plan_;
    Places places_;
    std::vector<Refused> refused_;
    Limits limits_;
    std::uint64_t skipped_steps_ = 0;
    double grad_norm_ = 0;
    bool has_norm_ = false;
    Gate gate_;
    Lock lock_;
};

void define_torch(py::module_& m);

} // namespace thalweg

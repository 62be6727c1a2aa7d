// One param of a torch optimizer: its operands, and the plan's item that is kept for their layout.
#pragma once
#include <cstddef>
#include <cstdint>

#include "step/level.hpp"
#include "step/plan.hpp"
#include "torch_group.hpp"
#include "torch_operand.hpp"

namespace thalweg {

class TorchLeaf {
  public:
    // Each looks at one operand: null, or why a step here cannot take it.
    const char* look_at_param(const Torch& torch, PyObject* param) {
        return param_.look_at(torch, param, TorchOperand::Use::written, relaid_);
    }
    const char* look_at_grad(const Torch& torch, PyObject* grad);
    // A sparse COO gradient, by its rows and their values.
    const char* look_at_rows(const Torch& torch, PyObject* rows, PyObject* values);
    const char* look_at_state(const Torch& torch, PyObject* state);
    const char* look_at_count(const Torch& torch, PyObject* count);
    void begin() { sparse_ = counted_ = false; }

    // Puts all of them into the item. True: it is of another size than before.
    bool describe(Item& item, const Level& level, const TorchGroup& group, bool is_new);
    void occupy(Places& places, bool has_state) const;
    // Nobody has moved an operand since it was looked at.
    bool is_still(const Torch& torch, bool has_state) const {
        return param_.is_still(torch) && grad_.is_still(torch) &&
               (!has_state || state_.is_still(torch)) && (!counted_ || count_.is_still(torch));
    }
    // The step has been taken.
    void count_step() const;

    const std::vector<std::ptrdiff_t>& shape() const { return param_.shape(); }

    // Where the param stood in the dict of states.
    Py_ssize_t position = 0;

  private:
    void plan(Item& item, const Level& level, const TorchGroup& group);

    TorchOperand param_, grad_, state_, count_;
    bool relaid_ = true, sparse_ = false, counted_ = false;
    std::uint64_t t_ = 0;
    RowNumbers rows_{};
    Span rows_span_;
    const Level* level_ = nullptr;
    KernelIndex kernel_ = KernelIndex::count;
};

} // namespace thalweg

// One array of a step as Python holds it: the param and its state, their layout when the plan was
// made, and how a gradient is checked against them and put into the plan's item.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <utility>
#include <vector>

#include "array.hpp"
#include "overlap.hpp"
#include "rowgrad.hpp"
#include "step/plan.hpp"

namespace thalweg {

// The words for the three operands in messages.
struct Names {
    const char *param, *grad, *state;
};

// Throws IndexError: `rows` names one that `param` does not have.
[[noreturn]] void refuse_row(const std::string& rows, const std::string& param, std::size_t count,
                             const BadRow& bad);

class Leaf {
  public:
    // Checks the param: TypeError or ValueError.
    Leaf(std::string its_path, py::object array, const Names& names);

    // A state buffer of the caller's, checked as the param is, or one of our own.
    void set_state(py::object state);
    void make_state(double value) {
        set_state_unchecked(state_like(param.ptr(), value, by_row_));
        untouched_ = zeros_of(state.ptr());
    }
    // Its state has one element a row; to be said before there is a state.
    void keep_state_by_row() { by_row_ = true; }

    // An average of our own, not started: of no values yet.
    void make_average();
    void drop_average();
    // Gives one that has not started the param's values.
    void refresh_average() const { average[py::ellipsis()] = param; }

    bool is_state_given() const { return given_; }

    void occupy(Occupied& occupied) const;
    void describe(Item& item) const;

    // Throws RuntimeError if the param's memory is not what the plan was made for.
    void check_unchanged() const {
        const auto& a = fields(param.ptr());
        if (a.data != data_ || a.descr != descr_.ptr() || !is_alike(a) || a.flags != flags_)
            refuse_change(param.ptr());
        if (given_) check_state();
    }

    // Checks a gradient and points the item to it. `grad` must outlive the step.
    void bind_gradient(PyObject* grad, const Occupied& occupied, Item& item) {
        if (Py_TYPE(grad) == plain_array_ && flat_ && fields(grad).descr == descr_.ptr() &&
            is_alike(fields(grad))) {
            const char* data = fields(grad).data;
            if (data != apart_) {
                if (occupied.may_meet(data, data + bytes_))
                    occupied.check(grad, {names_.grad, path});
                expect_all();
            }
            apart_ = item.grad = data;
            item.grad_dtype = item.dtype;
            item.linear = true;
            item.sparse = false;
        } else {
            bind_any_gradient(grad, occupied, item);
        }
    }

    // Throws IndexError: the last gradient's row is none of the param's.
    [[noreturn]] void refuse_row(const BadRow& bad) const;

    // The next gradient is checked for shared memory, even at an address that was checked before.
    void forget_gradient() { apart_ = strided_apart_ = nullptr; }

    std::string path;
    py::object param, state; // state is empty for a rule without one
    py::object average;      // empty where weights are not averaged
    Dtype dtype;

  private:
    bool is_alike(const py::detail::PyArray_Proxy& a) const {
        if (a.nd != static_cast<int>(shape_.size())) return false;
        for (std::size_t i = 0; i < shape_.size(); ++i)
            if (a.dimensions[i] != shape_[i] || a.strides[i] != strides_[i]) return false;
        return true;
    }
    void set_state_unchecked(py::object state);
    void lie_anew(); // the layout of another operand than the gradient has changed
    void plan(Item& item, const py::ssize_t* grad_strides, Dtype grad_dtype) const;
    void expect_all() {
        if (untouched_) std::exchange(untouched_, nullptr)->expect_all();
    }
    void bind_any_gradient(PyObject* grad, const Occupied& occupied, Item& item);
    void bind_number(PyObject* grad, Item& item);
    void bind_rows(const RowGrad& grad, const Occupied& occupied, Item& item);
    // What a step by rows walks; `grad_strides` are those of the gradient's axes.
    Traversal::Strides row_strides(const py::ssize_t* grad_strides) const {
        return {strides_.data(), grad_strides, state ? state_strides_.data() : nullptr,
                average ? average_strides_.data() : nullptr};
    }
    void check_state() const;
    [[noreturn]] void refuse_change(PyObject* array) const;

    Names names_;
    const PyTypeObject* plain_array_;
    char* data_;
    py::object descr_;
    int flags_;
    std::vector<py::ssize_t> shape_, strides_, state_strides_, average_strides_;
    std::ptrdiff_t bytes_ = 0;
    bool flat_ = false; // param, state and average are each one run of adjacent elements
    bool by_row_ = false;
    bool given_ = false; // the state is the caller's
    char* state_data_ = nullptr;
    int state_flags_ = 0;
    // The last gradient that was found to share no memory, of each kind.
    const char *apart_ = nullptr, *strided_apart_ = nullptr;
    const Zeros* untouched_ = nullptr; // `state`'s, up to the first gradient of much of it
    double number_ = 0;                // a Python float given as the gradient of a 0-d param
    std::vector<py::ssize_t> planned_strides_; // of the gradient the item's traversal is for
    Dtype planned_dtype_ = Dtype::float16;
};

} // namespace thalweg

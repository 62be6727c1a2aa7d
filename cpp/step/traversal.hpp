// How the operands of one array are walked: boxes for the kernels, and the order of a gradient.
#pragma once
#include <cstddef>
#include <vector>

#include "kernel/contract.hpp"

namespace thalweg {

inline std::size_t ceil_div(std::size_t a, std::size_t b) { return (a + b - 1) / b; }

// How up to four operands of one shape are walked together: in the order of the param's memory,
// axes merged where all operands allow it, cut into boxes.
class Traversal {
  public:
    struct Strides {
        const std::ptrdiff_t *param, *grad, *state = nullptr, *average = nullptr;
    };

    // Strides in bytes. `inner` is what one box of a fully contiguous array may hold.
    void plan(std::size_t ndim, const std::ptrdiff_t* shape, const Strides& strides,
              std::ptrdiff_t param_size, std::ptrdiff_t grad_size);

    std::size_t boxes() const { return boxes_; }
    // The whole is one run of adjacent elements in param, state and average.
    bool is_flat() const { return flat_; }
    // Box `index` of operands that start at these addresses.
    Box box(std::size_t index, char* param, const char* grad, char* state) const;
    // What of the average belongs to that box.
    Operand average(std::size_t index, char* average) const;

  private:
    struct Axis {
        std::size_t length;
        std::ptrdiff_t param, grad, state, average;
    };
    // Calls advance(axis, by) for each way from the first element to the first of a box, and
    // returns the rows and columns of it.
    struct Extent {
        std::size_t rows, cols;
    };
    template <class Advance> Extent find(std::size_t index, const Advance& advance) const;
    void merge_axes();
    void cut(std::ptrdiff_t param_size, std::ptrdiff_t grad_size);

    std::vector<Axis> outer_;
    Axis row_{}, column_{};
    std::size_t rows_ = 1, cols_ = 1; // of a box
    std::size_t row_boxes_ = 1, column_boxes_ = 1, boxes_ = 0;
    bool flat_ = false;
};

// The axes of an array in logical C order, merged where they can be.
void sequence_axes(std::size_t ndim, const std::ptrdiff_t* shape, const std::ptrdiff_t* strides,
                   std::size_t item_size, std::vector<Sequence::Axis>& axes);

} // namespace thalweg

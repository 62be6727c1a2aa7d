#include "traversal.hpp"

#include <algorithm>
#include <cstdlib>

namespace thalweg {

namespace {

// Elements in a box of adjacent elements: large enough to hide the claim of a box.
constexpr std::size_t block = norm_block;

// Columns of a box whose gradient runs along the rows. It has whole cache lines of rows: each is
// read once, and the rows of the other operands stay long enough for full vectors.
constexpr std::size_t transposed_columns = 128;

} // namespace

void Traversal::plan(std::size_t ndim, const std::ptrdiff_t* shape, const Strides& strides,
                     std::ptrdiff_t param_size, std::ptrdiff_t grad_size) {
    *this = Traversal();
    if (std::find(shape, shape + ndim, 0) != shape + ndim) return;
    for (std::size_t i = 0; i < ndim; ++i)
        if (shape[i] != 1)
            outer_.push_back({static_cast<std::size_t>(shape[i]), strides.param[i], strides.grad[i],
                              strides.state ? strides.state[i] : 0,
                              strides.average ? strides.average[i] : 0});
    std::stable_sort(outer_.begin(), outer_.end(), [](const Axis& a, const Axis& b) {
        return std::abs(a.param) > std::abs(b.param);
    });
    merge_axes();
    cut(param_size, grad_size);
}

void Traversal::merge_axes() {
    std::size_t kept = 0;
    for (std::size_t i = 1; i < outer_.size(); ++i) {
        Axis& a = outer_[kept];
        const Axis& b = outer_[i];
        const auto n = static_cast<std::ptrdiff_t>(b.length);
        if (a.param == n * b.param && a.grad == n * b.grad && a.state == n * b.state &&
            a.average == n * b.average)
            a = {a.length * b.length, b.param, b.grad, b.state, b.average};
        else
            outer_[++kept] = b;
    }
    if (!outer_.empty()) outer_.resize(kept + 1);
}

void Traversal::cut(std::ptrdiff_t param_size, std::ptrdiff_t grad_size) {
    column_ = row_ = {1, param_size, grad_size, param_size, param_size};
    if (!outer_.empty()) {
        column_ = outer_.back();
        outer_.pop_back();
    }
    // A stride of 0: there is none.
    const auto runs_along = [&](std::ptrdiff_t stride) {
        return stride == param_size || stride == 0;
    };
    flat_ = outer_.empty() && column_.param == param_size && runs_along(column_.state) &&
            runs_along(column_.average);
    bool transposed = false;
    if (!outer_.empty()) {
        const auto along_rows = std::find_if(outer_.begin(), outer_.end(), [&](const Axis& axis) {
            return axis.grad == grad_size && column_.grad != grad_size;
        });
        transposed = along_rows != outer_.end();
        const auto chosen = transposed ? along_rows : outer_.end() - 1;
        row_ = *chosen;
        outer_.erase(chosen);
    }
    if (row_.length == 1) {
        rows_ = 1;
        cols_ = std::min(column_.length, block);
    } else {
        cols_ = std::min(column_.length, transposed ? transposed_columns : tile);
        rows_ = tile / cols_;
        if (const std::size_t lines = cache_line / static_cast<std::size_t>(grad_size); transposed)
            rows_ = cols_ == transposed_columns ? lines : std::max(lines, rows_ / lines * lines);
        rows_ = std::min(row_.length, rows_);
        cols_ = std::min(column_.length, tile / rows_);
    }
    row_boxes_ = ceil_div(row_.length, rows_);
    column_boxes_ = ceil_div(column_.length, cols_);
    boxes_ = row_boxes_ * column_boxes_;
    for (const Axis& axis : outer_) boxes_ *= axis.length;
}

template <class Advance>
Traversal::Extent Traversal::find(std::size_t index, const Advance& advance) const {
    const std::size_t column = index % column_boxes_ * cols_;
    index /= column_boxes_;
    const std::size_t row = index % row_boxes_ * rows_;
    index /= row_boxes_;
    advance(column_, static_cast<std::ptrdiff_t>(column));
    advance(row_, static_cast<std::ptrdiff_t>(row));
    for (std::size_t i = outer_.size(); i-- > 0;) {
        advance(outer_[i], static_cast<std::ptrdiff_t>(index % outer_[i].length));
        index /= outer_[i].length;
    }
    return {std::min(rows_, row_.length - row), std::min(cols_, column_.length - column)};
}

Box Traversal::box(std::size_t index, char* param, const char* grad, char* state) const {
    const Extent extent = find(index, [&](const Axis& axis, std::ptrdiff_t n) {
        param += n * axis.param;
        grad += n * axis.grad;
        state += n * axis.state;
    });
    return {extent.rows,
            extent.cols,
            {param, row_.param, column_.param},
            {const_cast<char*>(grad), row_.grad, column_.grad},
            {state, row_.state, column_.state},
            Dtype::float32};
}

Operand Traversal::average(std::size_t index, char* average) const {
    find(index, [&](const Axis& axis, std::ptrdiff_t n) { average += n * axis.average; });
    return {average, row_.average, column_.average};
}

void sequence_axes(std::size_t ndim, const std::ptrdiff_t* shape, const std::ptrdiff_t* strides,
                   std::size_t item_size, std::vector<Sequence::Axis>& axes) {
    axes.clear();
    for (std::size_t i = 0; i < ndim; ++i) {
        if (shape[i] == 1) continue;
        const auto length = static_cast<std::size_t>(shape[i]);
        if (!axes.empty() && axes.back().stride == shape[i] * strides[i])
            axes.back() = {axes.back().length * length, strides[i]};
        else
            axes.push_back({length, strides[i]});
    }
    if (axes.empty()) axes.push_back({1, static_cast<std::ptrdiff_t>(item_size)});
}

} // namespace thalweg

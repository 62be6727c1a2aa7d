#include "zeroing.hpp"

#include <cstring>

namespace thalweg {

namespace {

// Elements of `size` bytes; all zero bits are the number 0 in every dtype.
void zero_run(char* data, std::size_t count, std::ptrdiff_t stride, std::size_t size) {
    if (stride == static_cast<std::ptrdiff_t>(size)) {
        std::memset(data, 0, count * size);
        return;
    }
    const auto one_by_one = [&](auto width) {
        for (std::size_t i = 0; i < count; ++i, data += stride) std::memset(data, 0, width());
    };
    if (size == 2)
        one_by_one([] { return 2; });
    else if (size == 4)
        one_by_one([] { return 4; });
    else
        one_by_one([] { return 8; });
}

void zero_axes(char* data, const Sequence::Axis* axes, std::size_t ndim, std::size_t size) {
    if (ndim == 1) return zero_run(data, axes->length, axes->stride, size);
    for (std::size_t i = 0; i < axes->length; ++i, data += axes->stride)
        zero_axes(data, axes + 1, ndim - 1, size);
}

} // namespace

void zero_gradient(const Box& box) {
    const Operand& grad = box.grad;
    const std::size_t size = size_of(box.grad_dtype);
    // The shorter stride inside: a transposed gradient lies the other way round.
    const bool transposed = grad.row_stride == static_cast<std::ptrdiff_t>(size);
    const std::size_t outer = transposed ? box.cols : box.rows;
    const std::size_t inner = transposed ? box.rows : box.cols;
    const std::ptrdiff_t outer_stride = transposed ? grad.col_stride : grad.row_stride;
    const std::ptrdiff_t inner_stride = transposed ? grad.row_stride : grad.col_stride;
    for (std::size_t i = 0; i < outer; ++i)
        zero_run(grad.data + static_cast<std::ptrdiff_t>(i) * outer_stride, inner, inner_stride,
                 size);
}

void zero_gradient(const RowBox& box) {
    const Sequence& row = box.grad.row;
    const auto zero = [&](std::size_t position) {
        zero_axes(row.data + static_cast<std::ptrdiff_t>(position) * box.grad.stride, row.axes,
                  row.ndim, size_of(row.dtype));
    };
    if (!box.sorted) {
        for (std::size_t k = box.first; k < box.last; ++k) zero(k);
        return;
    }
    const std::uint64_t mask = (std::uint64_t{1} << box.shift) - 1;
    for (std::size_t i = box.starts[box.first]; i < box.starts[box.last]; ++i)
        zero(static_cast<std::size_t>(box.sorted[i] & mask));
}

} // namespace thalweg

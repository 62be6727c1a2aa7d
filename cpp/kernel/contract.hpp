// The contract between the kernels and the rest: plain data and function pointers.
#pragma once
#include <cstddef>
#include <cstdint>

#include "machine.hpp"

// The kernel list: name, rule.
#define THALWEG_KERNELS(X)                    \
    X(sgd, Descent)                           \
    X(heavy_ball, HeavyBall)                  \
    X(heavy_ball_nesterov, HeavyBallNesterov) \
    X(classic, Classic)                       \
    X(classic_nesterov, ClassicNesterov)      \
    X(ema, Ema)                               \
    X(adagrad_inside, AdagradInside)          \
    X(adagrad_outside, AdagradOutside)        \
    X(adagrad_row_inside, AdagradRowInside)   \
    X(adagrad_row_outside, AdagradRowOutside) \
    X(average, Average)                       \
    X(limit, Limit)

namespace thalweg {

enum class Dtype : unsigned char { float16, float32, float64 };

constexpr std::size_t size_of(Dtype dtype) {
    return dtype == Dtype::float16 ? 2 : dtype == Dtype::float32 ? 4 : 8;
}

// What a step is told, for one group of arrays. The kernels round to the array's dtype.
struct Options {
    double lr = 0, momentum = 0, dampening = 0, weight_decay = 0, eps = 0, lr_decay = 0;
    double initial_accumulator_value = 0, scale = 1;
    double max_norm = 0, max_array_norm = 0, max_value = 0; // 0: none
    double norm_eps = 1e-6;
    double weight_average = 0;
    double clip = 1; // of this step: max_norm / (norm + norm_eps)
    bool decoupled = false, maximize = false, frozen = false;
    bool judged = false; // non-finite gradients matter
};

// One array seen as rows and columns; strides in bytes, of any sign.
struct Operand {
    char* data;
    std::ptrdiff_t row_stride, col_stride;
};

// The part of a step that one kernel call does. More than one row only if rows * cols <= tile.
struct Box {
    std::size_t rows, cols;
    Operand param, grad, state;
    Dtype grad_dtype;
};

// Elements of the scratch that a strided or converted operand passes through: 8 KiB of float32.
constexpr std::size_t tile = 2048;

// Bytes. A step over many lines begins its vectors on a line of the param, and the state is laid so
// that they begin on one there too.
constexpr std::size_t cache_line = 64, many_lines = 64 * cache_line;

using Update = void (*)(const Box&, const Options&, std::uint64_t t);

// A gradient in logical C order: axes from the outermost to the innermost, at least one.
struct Sequence {
    struct Axis {
        std::size_t length;
        std::ptrdiff_t stride; // in bytes
    };
    char* data;
    const Axis* axes;
    std::size_t ndim;
    Dtype dtype;
};

// What a stretch of a gradient holds, after conversion, scale and, for the squares, max_value.
struct Measured {
    double squares;
    std::size_t nans, infinities, first; // the first bad element's index in the array
};

// Elements whose squares are summed by themselves.
constexpr std::size_t norm_block = 16384;

using Measure = Measured (*)(const Sequence&, std::size_t begin, std::size_t end, const Options&);

// A table as one operand of a step by rows: its first row, and the way from row to row.
struct RowOperand {
    Sequence row;
    std::ptrdiff_t stride; // in bytes
};

// The part of a step by rows that one kernel call does: distinct rows `first` to `last`. Rows of
// equal number are summed in the order in which they stand in the gradient.
struct RowBox {
    RowOperand param, grad, state; // the state has one element a row if the kernel is by_row
    std::size_t row_size;          // elements
    // Ascending: a row of the param, shifted, and below it where its gradient stands. Null: the
    // gradient has every row once, in order.
    const std::uint64_t* sorted;
    unsigned shift;
    const std::size_t* starts; // where in `sorted` each distinct row starts, and the end
    std::size_t first, last;
    // Null, or the distinct rows' sums in the param's dtype, one after the other: measuring leaves
    // them here, and the update reads them.
    char* sums;

    std::size_t row(std::size_t k) const {
        return sorted ? static_cast<std::size_t>(sorted[starts[k]] >> shift) : k;
    }
};

// Squares that the array's dtype cannot hold, of elements or, by row, of row means; after scale and
// both clips.
struct Overflown {
    std::size_t count, first; // the first one's index in the array
};
using Overflow = Overflown (*)(const Sequence&, std::size_t begin, std::size_t end, const Options&);
using OverflowRows = Overflown (*)(const RowBox&, const Options&);

using UpdateRows = void (*)(const RowBox&, const Options&, std::uint64_t t);

// Elements `begin` to `end` of the summed rows, one after the other.
using MeasureRows = Measured (*)(const RowBox&, std::size_t begin, std::size_t end, const Options&);

struct Kernel {
    const char* name;
    bool has_state;
    bool by_row; // one element of state for each row; always runs by rows
    Update float32, float64;
    UpdateRows rows_float32, rows_float64;
    // Null for a rule that keeps no sum of squares.
    Overflow overflow_float32, overflow_float64;
    OverflowRows overflow_rows_float32, overflow_rows_float64;
};

// Dense slices of `size` elements, added in order; `out` may be one of them.
using AddSlices = void (*)(void* out, const void* const* slices, std::size_t count,
                           std::size_t size);

// The sum of squares of each block of a dense array.
using SumBlocks = void (*)(const void* values, std::size_t size, double* sums);

// The kernels as compiled for one level of the instruction set.
struct Level {
    const char* name;
    const Kernel* kernels;
    Measure measure_float32, measure_float64;
    MeasureRows measure_rows_float32, measure_rows_float64;
    AddSlices add_slices_float32, add_slices_float64;
    SumBlocks sum_blocks_float32, sum_blocks_float64;
};

enum class KernelIndex : std::size_t {
#define THALWEG_INDEX(name, Rule) name,
    THALWEG_KERNELS(THALWEG_INDEX)
#undef THALWEG_INDEX
        count
};
constexpr auto kernel_count = static_cast<std::size_t>(KernelIndex::count);

} // namespace thalweg

// The contract between the kernels and the rest: plain data and function pointers.
#pragma once
#include <cstddef>
#include <cstdint>

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
    bool decoupled = false, maximize = false;
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

// Elements of the scratch that a strided or converted operand passes through: 4 KiB of float32.
constexpr std::size_t tile = 1024;

using Update = void (*)(const Box&, const Options&, std::uint64_t t);

struct Kernel {
    const char* name;
    bool has_state;
    Update float32, float64;
};

// The kernels as compiled for one level of the instruction set.
struct Level {
    const char* name;
    const Kernel* kernels;
};

enum class KernelIndex : std::size_t {
#define THALWEG_INDEX(name, Rule) name,
    THALWEG_KERNELS(THALWEG_INDEX)
#undef THALWEG_INDEX
        count
};
constexpr auto kernel_count = static_cast<std::size_t>(KernelIndex::count);

} // namespace thalweg

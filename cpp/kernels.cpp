// The loop around a rule, and what section "gradient" and "decay" of the formulas do before it.
// Compiled once per ISA level, all in that level's namespace: no symbol may leave it, or the linker
// could keep an AVX-512 copy for everyone. Hence plain loops and almost no includes.
#include "kernels.hpp"

#include <cstring>

#include "rules/adagrad.hpp"
#include "rules/limit.hpp"
#include "rules/sgd.hpp"

namespace thalweg::THALWEG_LEVEL {

using std::ptrdiff_t;
using std::size_t;

struct Half {
    std::uint16_t bits;
};

template <class T> T widen(T x) { return x; }
inline float widen(Half h) {
    // Integer arithmetic, because not every level has a conversion instruction.
    const std::uint32_t magnitude = h.bits & 0x7fffU;
    const std::uint32_t sign = static_cast<std::uint32_t>(h.bits & 0x8000U) << 16U;
    const std::uint32_t exponent_gap = magnitude >= 0x7c00U ? 224U << 23U : 112U << 23U;
    const std::uint32_t normal = (magnitude << 13U) + exponent_gap;
    const float small = static_cast<float>(static_cast<std::int32_t>(magnitude)) * 0x1p-24F;
    std::uint32_t subnormal;
    std::memcpy(&subnormal, &small, sizeof subnormal);
    const std::uint32_t bits = (magnitude < 0x0400U ? subnormal : normal) | sign;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

// memcpy, because an address may have any alignment.
template <class S> S read(const char* from) {
    S x;
    std::memcpy(&x, from, sizeof x);
    return x;
}

template <class T, class S>
void load_as(T* __restrict to, const Operand& from, size_t rows, size_t cols) {
    const auto size = static_cast<ptrdiff_t>(sizeof(S));
    const auto at = [&](size_t r, size_t c) {
        return from.data + static_cast<ptrdiff_t>(r) * from.row_stride +
               static_cast<ptrdiff_t>(c) * from.col_stride;
    };
    if (from.col_stride == size) {
        for (size_t r = 0; r < rows; ++r) {
            const char* row = at(r, 0);
            for (size_t c = 0; c < cols; ++c)
                to[r * cols + c] = static_cast<T>(widen(read<S>(row + c * sizeof(S))));
        }
    } else if (from.row_stride == size) { // a transposed operand: each cache line is read once
        for (size_t c = 0; c < cols; ++c) {
            const char* column = at(0, c);
            for (size_t r = 0; r < rows; ++r)
                to[r * cols + c] = static_cast<T>(widen(read<S>(column + r * sizeof(S))));
        }
    } else {
        for (size_t r = 0; r < rows; ++r)
            for (size_t c = 0; c < cols; ++c)
                to[r * cols + c] = static_cast<T>(widen(read<S>(at(r, c))));
    }
}

template <class T> void load(T* to, const Operand& from, Dtype dtype, size_t rows, size_t cols) {
    switch (dtype) {
    case Dtype::float16: return load_as<T, Half>(to, from, rows, cols);
    case Dtype::float32: return load_as<T, float>(to, from, rows, cols);
    case Dtype::float64: return load_as<T, double>(to, from, rows, cols);
    }
}

template <class T>
void store(const T* __restrict from, const Operand& to, size_t rows, size_t cols) {
    for (size_t r = 0; r < rows; ++r) {
        char* row = to.data + static_cast<ptrdiff_t>(r) * to.row_stride;
        for (size_t c = 0; c < cols; ++c)
            std::memcpy(row + static_cast<ptrdiff_t>(c) * to.col_stride, &from[r * cols + c],
                        sizeof(T));
    }
}

template <class T> constexpr Dtype dtype_of = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;

template <class T> bool is_direct(const Operand& x) {
    const auto size = static_cast<ptrdiff_t>(sizeof(T));
    return x.col_stride == size && x.row_stride % size == 0 &&
           reinterpret_cast<std::uintptr_t>(x.data) % sizeof(T) == 0;
}

// The passes before the rule. Each is skipped when its option is off.
template <class T> struct Prepare {
    T scale, weight_decay, shrink;
    bool scaled, negated, coupled, decoupled;

    Prepare(const Options& o, double rate)
        : scale(static_cast<T>(o.scale)), weight_decay(static_cast<T>(o.weight_decay)),
          shrink(static_cast<T>(1.0 - rate * o.weight_decay)), scaled(o.scale != 1.0),
          negated(o.maximize), coupled(o.weight_decay != 0.0 && !o.decoupled),
          decoupled(o.weight_decay != 0.0 && o.decoupled) {}

    bool rewrites_gradient() const { return scaled || negated || coupled; }

    void gradient(T* __restrict g, size_t n) const {
        if (scaled)
            for (size_t i = 0; i < n; ++i) g[i] = scale * g[i];
        if (negated)
            for (size_t i = 0; i < n; ++i) g[i] = -g[i];
    }

    void decay(T* __restrict w, T* __restrict g, size_t n) const {
        if (coupled)
            for (size_t i = 0; i < n; ++i) g[i] = g[i] + weight_decay * w[i];
        if (decoupled)
            for (size_t i = 0; i < n; ++i) w[i] = shrink * w[i];
    }
};

template <class Rule, class T = typename Rule::value_type>
[[gnu::noinline]] void loop(const void* rule, T* __restrict w, const T* __restrict g,
                            [[maybe_unused]] T* __restrict state, size_t n) {
    const Rule apply = *static_cast<const Rule*>(rule);
    for (size_t i = 0; i < n; ++i)
        if constexpr (Rule::has_state)
            apply(w[i], g[i], state[i]);
        else
            apply(w[i], g[i]);
}

template <class T> using Loop = void (*)(const void* rule, T* w, const T* g, T* state, size_t n);

// An operand of the tile in work: where it lies, or a dense copy of it in scratch.
template <class T> class Window {
  public:
    Window(const Operand& whole, bool direct, T* scratch)
        : whole_(whole), direct_(direct), scratch_(scratch) {}

    void open(size_t column, size_t rows, size_t cols) {
        here_ = whole_;
        here_.data += static_cast<ptrdiff_t>(column) * whole_.col_stride;
        rows_ = rows, cols_ = cols;
        if (!direct_) load(scratch_, here_, dtype_of<T>, rows, cols);
    }
    T* row(size_t r) const {
        if (!direct_) return scratch_ + r * cols_;
        return reinterpret_cast<T*>(here_.data + static_cast<ptrdiff_t>(r) * here_.row_stride);
    }
    void close() const {
        if (!direct_) store(scratch_, here_, rows_, cols_);
    }

  private:
    Operand whole_, here_{};
    bool direct_;
    T* scratch_;
    size_t rows_ = 0, cols_ = 0;
};

// Any strides, any dtype of gradient, any preparation: tile by tile through scratch that stays in
// L1.
template <class T>
[[gnu::noinline]] void tiled(const Box& box, const Prepare<T>& prepare, Loop<T> rule_loop,
                             const void* rule, bool has_state) {
    alignas(64) T g[tile];
    alignas(64) T w_scratch[tile];
    alignas(64) T state_scratch[tile];
    Window<T> param(box.param, is_direct<T>(box.param), w_scratch);
    Window<T> state(box.state, !has_state || is_direct<T>(box.state), state_scratch);
    const size_t width = box.rows == 1 ? tile : tile / box.rows;
    for (size_t column = 0; column < box.cols; column += width) {
        const size_t cols = box.cols - column < width ? box.cols - column : width;
        Operand grad = box.grad;
        grad.data += static_cast<ptrdiff_t>(column) * grad.col_stride;
        load(g, grad, box.grad_dtype, box.rows, cols);
        prepare.gradient(g, box.rows * cols);
        param.open(column, box.rows, cols);
        state.open(column, box.rows, cols);
        for (size_t r = 0; r < box.rows; ++r) {
            prepare.decay(param.row(r), g + r * cols, cols);
            rule_loop(rule, param.row(r), g + r * cols, state.row(r), cols);
        }
        param.close();
        state.close();
    }
}

template <class Rule> void update(const Box& box, const Options& options, std::uint64_t t) {
    using T = typename Rule::value_type;
    const auto steps = static_cast<double>(t);
    const Rule rule(options, steps);
    const Prepare<T> prepare(options, Rule::rate(options, steps));
    if (box.rows == 1 && !prepare.rewrites_gradient() && !prepare.decoupled &&
        box.grad_dtype == dtype_of<T> && is_direct<T>(box.grad) && is_direct<T>(box.param) &&
        (!Rule::has_state || is_direct<T>(box.state))) {
        loop<Rule>(&rule, reinterpret_cast<T*>(box.param.data),
                   reinterpret_cast<const T*>(box.grad.data), reinterpret_cast<T*>(box.state.data),
                   box.cols);
    } else {
        tiled<T>(box, prepare, &loop<Rule>, &rule, Rule::has_state);
    }
}

constexpr Kernel kernels[] = {
#define THALWEG_ENTRY(name, Rule) \
    {#name, Rule<float>::has_state, &update<Rule<float>>, &update<Rule<double>>},
    THALWEG_KERNELS(THALWEG_ENTRY)
#undef THALWEG_ENTRY
};

#define THALWEG_TEXT_OF(x) #x
#define THALWEG_TEXT(x) THALWEG_TEXT_OF(x)
extern const Level level;
constinit const Level level = {THALWEG_TEXT(THALWEG_LEVEL), kernels};

} // namespace thalweg::THALWEG_LEVEL

// The loop around a rule, and what section "gradient" and "decay" of the formulas do before it.
// Compiled once per ISA level, all in that level's namespace: no symbol may leave it, or the linker
// could keep an AVX-512 copy for everyone. Hence plain loops and almost no includes.
#include "contract.hpp"

#include <cstring>

#include "loop.hpp"
#include "norm.hpp"
#include "overflow.hpp"
#include "rows.hpp"
#include "rules/adagrad.hpp"
#include "rules/average.hpp"
#include "rules/limit.hpp"
#include "rules/sgd.hpp"
#include "slices.hpp"
#include "tiles.hpp"

namespace thalweg::THALWEG_LEVEL {

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
THALWEG_NOINLINE void tiled(const Box& box, const Prepare<T>& prepare, Loop<T> rule_loop,
                            const void* rule, bool has_state) {
    // The first tile goes on to a cache line of the param, so that the others begin on one.
    constexpr size_t most = tile + cache_line / sizeof(T);
    const size_t head = box.rows == 1 ? before_line<T>(box.param.data, box.cols) : 0;
    alignas(cache_line) T g[most];
    alignas(cache_line) T w_scratch[most];
    alignas(cache_line) T state_scratch[most];
    Window<T> param(box.param, is_direct<T>(box.param), w_scratch);
    Window<T> state(box.state, !has_state || is_direct<T>(box.state), state_scratch);
    const size_t width = box.rows == 1 ? tile : tile / box.rows;
    const bool one_pass = box.rows == 1 && box.grad_dtype == dtype_of<T> &&
                          is_direct<T>(box.grad) && prepare.is_one_pass();
    for (size_t column = 0, cols; column < box.cols; column += cols) {
        cols = column == 0 ? head + width : width;
        if (cols > box.cols - column) cols = box.cols - column;
        Operand grad = box.grad;
        grad.data += static_cast<ptrdiff_t>(column) * grad.col_stride;
        param.open(column, box.rows, cols);
        state.open(column, box.rows, cols);
        if (one_pass) {
            prepare.in_one_pass(g, reinterpret_cast<const T*>(grad.data), param.row(0), cols);
        } else {
            load(g, grad, box.grad_dtype, box.rows, cols);
            prepare.gradient(g, box.rows * cols);
            for (size_t r = 0; r < box.rows; ++r) prepare.couple(param.row(r), g + r * cols, cols);
        }
        for (size_t r = 0; r < box.rows; ++r) {
            prepare.decouple(param.row(r), cols);
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
    if (box.rows == 1 && !Prepare<T>::is_needed(options) && box.grad_dtype == dtype_of<T> &&
        is_direct<T>(box.grad) && is_direct<T>(box.param) &&
        (!Rule::has_state || is_direct<T>(box.state))) {
        loop_on_lines<Rule>(&rule, reinterpret_cast<T*>(box.param.data),
                            reinterpret_cast<const T*>(box.grad.data),
                            reinterpret_cast<T*>(box.state.data), box.cols);
    } else {
        const Prepare<T> prepare(options, Rule::rate(options, steps));
        tiled<T>(box, prepare, &loop_on_lines<Rule>, &rule, Rule::has_state);
    }
}

template <class Rule> constexpr Update dense_update() {
    if constexpr (Rule::by_row)
        return nullptr;
    else
        return &update<Rule>;
}

template <class Rule> constexpr Overflow find_overflow() {
    if constexpr (Rule::squares)
        return &overflow<typename Rule::value_type>;
    else
        return nullptr;
}
template <class Rule> constexpr OverflowRows find_overflow_rows() {
    if constexpr (Rule::squares)
        return &overflow_rows<Rule>;
    else
        return nullptr;
}

constexpr Kernel kernels[] = {
#define THALWEG_ENTRY(name, Rule)       \
    {#name,                             \
     Rule<float>::has_state,            \
     Rule<float>::by_row,               \
     dense_update<Rule<float>>(),       \
     dense_update<Rule<double>>(),      \
     &update_rows<Rule<float>>,         \
     &update_rows<Rule<double>>,        \
     find_overflow<Rule<float>>(),      \
     find_overflow<Rule<double>>(),     \
     find_overflow_rows<Rule<float>>(), \
     find_overflow_rows<Rule<double>>()},
    THALWEG_KERNELS(THALWEG_ENTRY)
#undef THALWEG_ENTRY
};

#define THALWEG_TEXT_OF(x) #x
#define THALWEG_TEXT(x) THALWEG_TEXT_OF(x)
extern const Level level;
constinit const Level level = {THALWEG_TEXT(THALWEG_LEVEL),
                               kernels,
                               &measure<float>,
                               &measure<double>,
                               &measure_rows<float>,
                               &measure_rows<double>,
                               &add_slices<float>,
                               &add_slices<double>,
                               &sum_blocks<float>,
                               &sum_blocks<double>};

} // namespace thalweg::THALWEG_LEVEL

// A rule by rows: the rows of a sparse gradient, or all rows where the state has one element a row.
// Only the rows of the gradient are read and written.
#pragma once
#include "loop.hpp"
#include "norm.hpp"
#include "tiles.hpp"

namespace thalweg::THALWEG_LEVEL {

inline char* row_at(const RowOperand& x, size_t row) {
    return x.row.data + static_cast<ptrdiff_t>(row) * x.stride;
}

// A row of a table, part by part: where it lies, or a dense copy of it in scratch.
template <class T> class RowWindow {
  public:
    explicit RowWindow(const RowOperand& whole)
        : whole_(whole),
          direct_(is_dense<T>(whole.row) && whole.stride % ptrdiff_t{sizeof(T)} == 0) {}

    T* open(size_t row, size_t column, size_t n) {
        here_ = whole_.row;
        here_.data = row_at(whole_, row);
        if (direct_) return reinterpret_cast<T*>(here_.data) + column;
        gather(scratch_, here_, column, n);
        return scratch_;
    }
    bool is_direct() const { return direct_; }
    void close(size_t column, size_t n) const {
        if (!direct_) scatter(scratch_, here_, column, n);
    }

  private:
    RowOperand whole_;
    Sequence here_{};
    bool direct_;
    alignas(64) T scratch_[tile];
};

// How many rows ahead memory is asked for: where they are no prefetcher of the CPU's expects them.
// 8,192 rows of 64 floats beyond the caches, AMD Zen 5, ns a row: 87 without, 43 at 4, 30 at 8, 25
// at 12 and 16, 33 at 24.
constexpr size_t rows_ahead = 16;

// Beyond a few lines the CPU has understood. NumPy's large arrays start 16 bytes behind a line, so
// a row ends in one line more than it fills.
THALWEG_INLINE void prefetch_row(const RowOperand& x, size_t row, size_t bytes) {
    constexpr size_t most = 512;
    if (bytes == 0) return;
    const char* const start = row_at(x, row);
    const size_t last = bytes < most ? bytes - 1 : most;
    for (size_t at = 0; at < last; at += 64) prefetch_line(start + at);
    prefetch_line(start + last);
}

// The gradient by distinct rows: those of equal number summed, the first one as it is.
template <class T> class RowGradient {
  public:
    explicit RowGradient(const RowBox& box)
        : box_(box), values_(box.grad), bytes_(box.row_size * size_of(box.grad.row.dtype)) {}

    // Elements of distinct row k: where they lie, or summed in `to`.
    const T* open(size_t k, size_t column, size_t n, T* to) {
        if (box_.sums) return reinterpret_cast<const T*>(box_.sums) + k * box_.row_size + column;
        const size_t start = box_.sorted ? box_.starts[k] : k;
        const size_t end = box_.sorted ? box_.starts[k + 1] : k + 1;
        const T* const first = open_value(start, column, n);
        if (end - start == 1 && values_.is_direct()) return first;
        copy(to, first, n);
        for (size_t i = start + 1; i < end; ++i) add(to, open_value(i, column, n), n);
        return to;
    }
    // The same, always in `to`.
    T* take(size_t k, size_t column, size_t n, T* to) {
        const T* const g = open(k, column, n, to);
        if (g != to) copy(to, g, n);
        return to;
    }

  private:
    size_t position(size_t i) const {
        return static_cast<size_t>(box_.sorted[i] & ((std::uint64_t{1} << box_.shift) - 1));
    }
    const T* open_value(size_t i, size_t column, size_t n) {
        if (!box_.sorted) return values_.open(i, column, n);
        if (i + rows_ahead < box_.starts[box_.last])
            prefetch_row(box_.grad, position(i + rows_ahead), bytes_);
        return values_.open(position(i), column, n);
    }
    static void copy(T* __restrict to, const T* __restrict from, size_t n) {
        for (size_t i = 0; i < n; ++i) to[i] = from[i];
    }
    static void add(T* __restrict to, const T* __restrict x, size_t n) {
        for (size_t i = 0; i < n; ++i) to[i] = to[i] + x[i];
    }

    const RowBox& box_;
    RowWindow<T> values_;
    size_t bytes_;
};

template <class T>
THALWEG_INLINE void prefetch_table(const RowBox& box, size_t k, size_t state_bytes) {
    if (!box.sorted || k >= box.last) return;
    const size_t row = box.row(k);
    prefetch_row(box.param, row, box.row_size * sizeof(T));
    prefetch_row(box.state, row, state_bytes);
}

// One for all rules that update an element at a time.
template <class T>
THALWEG_NOINLINE void element_rows(const RowBox& box, const Options& options, double rate,
                                   Loop<T> rule_loop, const void* rule, bool has_state) {
    const Prepare<T> prepare(options, rate);
    const bool prepared = Prepare<T>::is_needed(options);
    const size_t state_bytes = has_state ? box.row_size * sizeof(T) : 0;
    alignas(64) T scratch[tile];
    RowGradient<T> gradient(box);
    RowWindow<T> param(box.param), state(box.state);
    for (size_t k = box.first; k < box.last; ++k) {
        prefetch_table<T>(box, k + rows_ahead, state_bytes);
        const size_t row = box.row(k);
        for (size_t column = 0; column < box.row_size; column += tile) {
            const size_t n = box.row_size - column < tile ? box.row_size - column : tile;
            T* const w = param.open(row, column, n);
            T* const s = has_state ? state.open(row, column, n) : nullptr;
            const T* g;
            if (prepared) {
                T* const own = gradient.take(k, column, n, scratch);
                prepare.gradient(own, n);
                prepare.couple(w, own, n);
                prepare.decouple(w, n);
                g = own;
            } else {
                g = gradient.open(k, column, n, scratch);
            }
            rule_loop(rule, w, g, s, n);
            param.close(column, n);
            if (has_state) state.close(column, n);
        }
    }
}

template <class Rule, class T = typename Rule::value_type>
THALWEG_NOINLINE void row_loop(const Rule& rule, T* __restrict w, const T* __restrict g, T root,
                               size_t n) {
    const Rule apply = rule;
    for (size_t i = 0; i < n; ++i) apply(w[i], g[i], root);
}

// A rule whose state has one element a row. Short rows go through in groups: the roots of a group
// do not wait for each other. A row longer than a tile is prepared twice, for its mean and for its
// update.
template <class Rule, class T = typename Rule::value_type>
void whole_rows(const RowBox& box, const Options& options, double rate, const Rule& rule) {
    constexpr size_t most = 8;
    const Prepare<T> prepare(options, rate);
    const bool prepared = Prepare<T>::is_needed(options);
    const size_t group = box.row_size * most <= tile ? most : 1;
    alignas(64) T scratch[tile];
    RowGradient<T> gradient(box);
    RowWindow<T> param(box.param), state(box.state);
    const auto open = [&](size_t k, size_t column, size_t n, T* to) -> const T* {
        if (!prepared) return gradient.open(k, column, n, to);
        T* const g = gradient.take(k, column, n, to);
        prepare.gradient(g, n);
        if (prepare.coupled) prepare.couple(param.open(box.row(k), column, n), g, n);
        return g;
    };
    const auto length = [&](size_t column) {
        return box.row_size - column < tile ? box.row_size - column : tile;
    };
    for (size_t first = box.first; first < box.last; first += group) {
        const size_t count = box.last - first < group ? box.last - first : group;
        const T* g[most];
        T roots[most];
        for (size_t j = 0; j < count; ++j) {
            prefetch_table<T>(box, first + j + rows_ahead, sizeof(T));
            typename Rule::Squares squares;
            for (size_t column = 0; column < box.row_size; column += tile) {
                g[j] = open(first + j, column, length(column), scratch + j * box.row_size);
                squares.add(g[j], length(column));
            }
            T* const accumulator = state.open(box.row(first + j), 0, 1);
            roots[j] = rule.root(*accumulator, static_cast<T>(squares.over(box.row_size)));
            state.close(0, 1);
        }
        for (size_t j = 0; j < count; ++j)
            for (size_t column = 0; column < box.row_size; column += tile) {
                const size_t n = length(column);
                if (box.row_size > tile) g[j] = open(first + j, column, n, scratch);
                T* const w = param.open(box.row(first + j), column, n);
                prepare.decouple(w, n);
                row_loop(rule, w, g[j], roots[j], n);
                param.close(column, n);
            }
    }
}

template <class Rule> void update_rows(const RowBox& box, const Options& options, std::uint64_t t) {
    using T = typename Rule::value_type;
    const auto steps = static_cast<double>(t);
    const Rule rule(options, steps);
    const double rate = Rule::rate(options, steps);
    if constexpr (Rule::by_row)
        whole_rows(box, options, rate, rule);
    else
        element_rows<T>(box, options, rate, &loop_on_lines<Rule>, &rule, Rule::has_state);
}

template <class T>
Measured measure_rows(const RowBox& box, size_t begin, size_t end, const Options& options) {
    const Prepare<T> prepare(options, 0.0);
    alignas(64) T scratch[tile];
    RowBox unsummed = box;
    unsummed.sums = nullptr;
    RowGradient<T> gradient(unsummed);
    T* const sums = reinterpret_cast<T*>(box.sums);
    const auto fill = [&](T* to, size_t at, size_t n) {
        while (n != 0) {
            const size_t column = at % box.row_size;
            const size_t rest = box.row_size - column, cols = rest < n ? rest : n;
            const size_t k = at / box.row_size;
            const T* const g = sums ? gradient.take(k, column, cols, sums + at)
                                    : gradient.open(k, column, cols, scratch);
            for (size_t i = 0; i < cols; ++i) to[i] = g[i];
            to += cols, at += cols, n -= cols;
        }
    };
    Measured found = measure_runs<T>(fill, begin, end, prepare, options.judged);
    look<T>(fill, begin, end, prepare, options.judged, found);
    return found;
}

} // namespace thalweg::THALWEG_LEVEL

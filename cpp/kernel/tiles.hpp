// A tile of a gradient on its way to the rule or to the norm: loaded from any strides and dtype,
// then scaled, clipped, negated and decayed. Included by each kernel source, in its level's
// namespace.
#pragma once
#include <cstring>
#include <type_traits>
#include <utility>

#include "contract.hpp"

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

// Always inline: GCC takes a function that only prefetches for one without effect, and drops its
// calls.
THALWEG_INLINE void prefetch_line([[maybe_unused]] const char* address) {
#ifdef __GNUC__
    __builtin_prefetch(address);
#endif
}
THALWEG_INLINE void prefetch(const char* address) {
    prefetch_line(address);
    prefetch_line(address + 63);
}

#ifdef __GNUC__
// Side of the square that is transposed at once: the lanes of a vector whose shuffles are single
// instructions. 8 floats are no faster than 4.
#ifdef __AVX512VL__
template <class T> constexpr size_t square = 4;
#else
template <class T> constexpr size_t square = 16 / sizeof(T);
#endif

// Transposes a square by riffling its columns, a vector each, like a pack
// of cards. Compilers make no shuffles of the plain loops.
template <class T, size_t... lane>
THALWEG_INLINE void transpose(T* __restrict to, size_t cols, const char* from, ptrdiff_t stride,
                              std::index_sequence<lane...>) {
    constexpr size_t n = sizeof...(lane);
    using Vector [[gnu::vector_size(n * sizeof(T))]] = T;
    Vector pack[n], next[n];
    for (size_t c = 0; c < n; ++c)
        std::memcpy(&pack[c], from + static_cast<ptrdiff_t>(c) * stride, sizeof(Vector));
    for (size_t width = n; width > 1; width /= 2) {
        for (size_t i = 0; i < n / 2; ++i) {
            const Vector a = pack[i], b = pack[i + n / 2];
            next[2 * i] = __builtin_shufflevector(a, b, (lane / 2 + lane % 2 * n)...);
            next[2 * i + 1] = __builtin_shufflevector(a, b, (n / 2 + lane / 2 + lane % 2 * n)...);
        }
        for (size_t i = 0; i < n; ++i) pack[i] = next[i];
    }
    for (size_t r = 0; r < n; ++r) std::memcpy(to + r * cols, &pack[r], sizeof(Vector));
}
#endif

// Operands whose columns are adjacent elements: each cache line is read once.
template <class T, class S>
void load_columns(T* __restrict to, const Operand& from, size_t rows, size_t cols) {
    const auto at = [&](size_t r, size_t c) {
        return from.data + r * sizeof(S) + static_cast<ptrdiff_t>(c) * from.col_stride;
    };
    const auto one_by_one = [&](size_t first_row, size_t first_column, size_t last_column) {
        constexpr size_t ahead = 16; // columns; no prefetcher of the CPU's follows such strides
        for (size_t c = first_column; c < last_column; ++c) {
            prefetch(at(0, c + ahead));
            for (size_t r = first_row; r < rows; ++r)
                to[r * cols + c] = static_cast<T>(widen(read<S>(at(r, c))));
        }
    };
    size_t columns = 0;
#ifdef __GNUC__
    if constexpr (std::is_same_v<T, S>) {
        constexpr size_t n = square<T>;
        const size_t whole_rows = rows / n * n;
        for (; columns + n <= cols; columns += n)
            for (size_t r = 0; r < whole_rows; r += n)
                transpose(to + r * cols + columns, cols, at(r, columns), from.col_stride,
                          std::make_index_sequence<n>());
        if (whole_rows < rows) one_by_one(whole_rows, 0, columns);
    }
#endif
    one_by_one(0, columns, cols);
}

template <class T, class S>
void load_as(T* __restrict to, const Operand& from, size_t rows, size_t cols) {
    const auto size = static_cast<ptrdiff_t>(sizeof(S));
    if (from.row_stride == size && from.col_stride != size)
        return load_columns<T, S>(to, from, rows, cols);
    for (size_t r = 0; r < rows; ++r) {
        const char* row = from.data + static_cast<ptrdiff_t>(r) * from.row_stride;
        if (from.col_stride == size)
            for (size_t c = 0; c < cols; ++c)
                to[r * cols + c] = static_cast<T>(widen(read<S>(row + c * sizeof(S))));
        else
            for (size_t c = 0; c < cols; ++c)
                to[r * cols + c] = static_cast<T>(
                    widen(read<S>(row + static_cast<ptrdiff_t>(c) * from.col_stride)));
    }
}

// Not inline: the many that pass through it would each have all of its loops.
template <class T>
THALWEG_NOINLINE void load(T* to, const Operand& from, Dtype dtype, size_t rows, size_t cols) {
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

template <class T> bool is_dense(const Sequence& x) {
    return x.ndim == 1 && x.dtype == dtype_of<T> && is_direct<T>({x.data, 0, x.axes[0].stride});
}

// Calls `run` with boxes of the `n` elements from `at` on, in logical C order: whole rows of the
// innermost axis together where they can be, or part of one.
template <class Run> void for_each_box(const Sequence& x, size_t at, size_t n, const Run& run) {
    constexpr Sequence::Axis one{1, 0};
    const auto& inner = x.axes[x.ndim - 1];
    const auto& outer = x.ndim > 1 ? x.axes[x.ndim - 2] : one;
    for (size_t done = 0; done < n;) {
        const size_t column = (at + done) % inner.length, row = (at + done) / inner.length;
        size_t rows = column == 0 ? (n - done) / inner.length : 0;
        if (rows > outer.length - row % outer.length) rows = outer.length - row % outer.length;
        size_t cols = inner.length;
        if (rows == 0) {
            rows = 1;
            cols = inner.length - column < n - done ? inner.length - column : n - done;
        }
        Operand box{x.data + static_cast<ptrdiff_t>(column) * inner.stride, outer.stride,
                    inner.stride};
        size_t index = row;
        for (size_t i = x.ndim - 1; i-- > 0; index /= x.axes[i].length)
            box.data += static_cast<ptrdiff_t>(index % x.axes[i].length) * x.axes[i].stride;
        run(box, done, rows, cols);
        done += rows * cols;
    }
}

// Elements from `at` on in logical C order, as a dense run.
template <class T> void gather(T* to, const Sequence& x, size_t at, size_t n) {
    for_each_box(x, at, n, [&](const Operand& box, size_t done, size_t rows, size_t cols) {
        load(to + done, box, x.dtype, rows, cols);
    });
}

template <class T> void scatter(const T* from, const Sequence& x, size_t at, size_t n) {
    for_each_box(x, at, n, [&](const Operand& box, size_t done, size_t rows, size_t cols) {
        store(from + done, box, rows, cols);
    });
}

// The passes before the rule. Each is skipped when its option is off.
template <class T> struct Prepare {
    T scale, max_value, clip, weight_decay, shrink;
    bool scaled, bounded, clipped, negated, coupled, decoupled;

    Prepare(const Options& o, double rate)
        : scale(static_cast<T>(o.scale)), max_value(static_cast<T>(o.max_value)),
          clip(static_cast<T>(o.clip)), weight_decay(static_cast<T>(o.weight_decay)),
          shrink(static_cast<T>(1.0 - rate * o.weight_decay)), scaled(o.scale != 1.0),
          bounded(o.max_value != 0.0), clipped(!(o.clip >= 1.0)), negated(o.maximize),
          coupled(o.weight_decay != 0.0 && !o.decoupled),
          decoupled(o.weight_decay != 0.0 && o.decoupled) {}

    // Asked of the unrounded options: rounding them takes as long as the step of a small array.
    static bool is_needed(const Options& o) {
        return o.scale != 1.0 || o.max_value != 0.0 || !(o.clip >= 1.0) || o.maximize ||
               o.weight_decay != 0.0;
    }

    void rescale(T* __restrict g, size_t n) const {
        if (scaled)
            for (size_t i = 0; i < n; ++i) g[i] = scale * g[i];
    }

    // The comparisons let a NaN through, as np.clip does.
    void bound(T* __restrict g, size_t n) const {
        if (!bounded) return;
        for (size_t i = 0; i < n; ++i) {
            const T x = g[i] < -max_value ? -max_value : g[i];
            g[i] = x > max_value ? max_value : x;
        }
    }

    void gradient(T* __restrict g, size_t n) const {
        rescale(g, n);
        bound(g, n);
        if (clipped)
            for (size_t i = 0; i < n; ++i) g[i] = clip * g[i];
        if (negated)
            for (size_t i = 0; i < n; ++i) g[i] = -g[i];
    }

    void couple(const T* __restrict w, T* __restrict g, size_t n) const {
        if (coupled)
            for (size_t i = 0; i < n; ++i) g[i] = g[i] + weight_decay * w[i];
    }

    void decouple(T* __restrict w, size_t n) const {
        if (decoupled)
            for (size_t i = 0; i < n; ++i) w[i] = shrink * w[i];
    }

    // At most one product before the decay: then all of it is one pass, with the same roundings,
    // because a sign commutes with a product.
    bool is_one_pass() const { return !bounded && !(scaled && clipped); }
    void in_one_pass(T* __restrict to, const T* __restrict g, const T* __restrict w,
                     size_t n) const {
        const T magnitude = scaled ? scale : clipped ? clip : T(1);
        const T factor = negated ? -magnitude : magnitude;
        if (coupled)
            for (size_t i = 0; i < n; ++i) to[i] = factor * g[i] + weight_decay * w[i];
        else
            for (size_t i = 0; i < n; ++i) to[i] = factor * g[i];
    }
};

} // namespace thalweg::THALWEG_LEVEL

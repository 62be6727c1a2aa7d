// The sum of squares of a gradient and its non-finite elements, in one read. The sum is a fixed
// tree, so its bits depend on nothing but the values: blocks of 16,384 elements in logical C order,
// in each 32 lanes (element i to lane i mod 32), lanes added in pairs, blocks and arrays in order.
#pragma once
#include "contract.hpp"
#include "tiles.hpp"

namespace thalweg::THALWEG_LEVEL {

constexpr size_t lanes = 32;
static_assert(tile % lanes == 0 && norm_block % tile == 0);

struct Sum {
    double lane[lanes] = {};

    template <class T> void add(const T* values, size_t n) {
        double sum[lanes];
        for (size_t j = 0; j < lanes; ++j) sum[j] = lane[j];
        size_t i = 0;
        for (; i + lanes <= n; i += lanes)
            for (size_t j = 0; j < lanes; ++j) {
                const auto x = static_cast<double>(values[i + j]);
                sum[j] = sum[j] + x * x;
            }
        for (size_t j = 0; i + j < n; ++j) {
            const auto x = static_cast<double>(values[i + j]);
            sum[j] = sum[j] + x * x;
        }
        for (size_t j = 0; j < lanes; ++j) lane[j] = sum[j];
    }
    double total() {
        for (size_t width = lanes / 2; width != 0; width /= 2)
            for (size_t j = 0; j < width; ++j) lane[j] = lane[2 * j] + lane[2 * j + 1];
        return lane[0];
    }
};

template <class T> void count_bad(const T* values, size_t n, size_t at, Measured& found) {
    for (size_t i = 0; i < n; ++i) {
        if (values[i] - values[i] == T(0)) continue;
        if (found.nans + found.infinities == 0) found.first = at + i;
        ++(values[i] != values[i] ? found.nans : found.infinities);
    }
}

// Calls `visit` with each run of elements, converted and scaled. `fill` puts n of them, from one
// on, where it is told. `visit` may change them.
template <class T, size_t length, class Fill, class Visit>
void for_each_run(const Fill& fill, size_t begin, size_t end, const Prepare<T>& prepare,
                  const Visit& visit) {
    alignas(cache_line) T scratch[length];
    for (size_t at = begin; at < end; at += length) {
        const size_t n = end - at < length ? end - at : length;
        fill(scratch, at, n);
        prepare.rescale(scratch, n);
        visit(scratch, n, at);
    }
}

template <class T, size_t length = tile, class Fill>
Measured measure_runs(const Fill& fill, size_t begin, size_t end, const Prepare<T>& prepare,
                      bool judged) {
    Measured found{};
    Sum sum;
    for_each_run<T, length>(fill, begin, end, prepare, [&](T* values, size_t n, size_t at) {
        // Counted before the bound, which makes max_value of an infinity.
        if (prepare.bounded && judged) count_bad(values, n, at, found);
        prepare.bound(values, n);
        sum.add(values, n);
    });
    found.squares = sum.total();
    return found;
}

// A square may overflow where no element does, so a bad sum only says: look.
template <class T, size_t length = tile, class Fill>
void look(const Fill& fill, size_t begin, size_t end, const Prepare<T>& prepare, bool judged,
          Measured& found) {
    if (judged && !prepare.bounded && !(found.squares - found.squares == 0.0))
        for_each_run<T, length>(fill, begin, end, prepare, [&](T* values, size_t n, size_t at) {
            count_bad(values, n, at, found);
        });
}

template <class T, size_t length, class Fill>
THALWEG_NOINLINE Measured measure_gathered(const Fill& fill, size_t begin, size_t end,
                                           const Prepare<T>& prepare, bool judged) {
    Measured found = measure_runs<T, length>(fill, begin, end, prepare, judged);
    look<T, length>(fill, begin, end, prepare, judged, found);
    return found;
}

template <class T>
Measured measure(const Sequence& grad, size_t begin, size_t end, const Options& options) {
    // Of a transposed gradient, 64 KiB: as many elements as can be of each cache line that is read.
    constexpr size_t rows_together = (size_t{64} << 10) / sizeof(T);
    const Prepare<T> prepare(options, 0.0);
    const auto fill = [&](T* to, size_t at, size_t n) { gather(to, grad, at, n); };
    if (is_dense<T>(grad) && !prepare.scaled && !prepare.bounded) {
        Sum sum;
        sum.add(reinterpret_cast<const T*>(grad.data) + begin, end - begin);
        Measured found{};
        found.squares = sum.total();
        look<T>(fill, begin, end, prepare, options.judged, found);
        return found;
    }
    const bool transposed = grad.ndim > 1 && grad.axes[grad.ndim - 2].stride ==
                                                 static_cast<ptrdiff_t>(size_of(grad.dtype));
    if (transposed)
        return measure_gathered<T, rows_together>(fill, begin, end, prepare, options.judged);
    return measure_gathered<T, tile>(fill, begin, end, prepare, options.judged);
}

} // namespace thalweg::THALWEG_LEVEL

// Gradients whose squares the array's dtype cannot hold: found after scale and both clips, for the
// rules that keep sums of squares. Rare: read only where the sum of a block's squares is
// suspicious.
#pragma once
#include "rows.hpp"
#include "tiles.hpp"

namespace thalweg::THALWEG_LEVEL {

template <class T> void note_overflow(T square, size_t at, Overflown& found) {
    if (square - square == T(0)) return;
    if (found.count == 0) found.first = at;
    ++found.count;
}

template <class T>
Overflown overflow(const Sequence& grad, size_t begin, size_t end, const Options& options) {
    const Prepare<T> prepare(options, 0.0);
    alignas(cache_line) T g[tile];
    Overflown found{};
    for (size_t at = begin; at < end; at += tile) {
        const size_t n = end - at < tile ? end - at : tile;
        gather(g, grad, at, n);
        prepare.gradient(g, n);
        for (size_t i = 0; i < n; ++i) note_overflow(g[i] * g[i], at + i, found);
    }
    return found;
}

// Of the distinct rows of the box: their elements' squares or, where the rule keeps one state a
// row, their means.
template <class Rule> Overflown overflow_rows(const RowBox& box, const Options& options) {
    using T = typename Rule::value_type;
    const Prepare<T> prepare(options, 0.0);
    alignas(cache_line) T scratch[tile];
    RowGradient<T> gradient(box);
    Overflown found{};
    const auto for_each_part = [&](size_t k, const auto& visit) {
        for (size_t column = 0; column < box.row_size; column += tile) {
            const size_t n = box.row_size - column < tile ? box.row_size - column : tile;
            T* const g = gradient.take(k, column, n, scratch);
            prepare.gradient(g, n);
            visit(g, n, k * box.row_size + column);
        }
    };
    for (size_t k = box.first; k < box.last; ++k) {
        if constexpr (Rule::by_row) {
            typename Rule::Squares squares;
            for_each_part(k, [&](const T* g, size_t n, size_t) { squares.add(g, n); });
            note_overflow(static_cast<T>(squares.over(box.row_size)), k * box.row_size, found);
        } else {
            for_each_part(k, [&](const T* g, size_t n, size_t at) {
                for (size_t i = 0; i < n; ++i) note_overflow(g[i] * g[i], at + i, found);
            });
        }
    }
    return found;
}

} // namespace thalweg::THALWEG_LEVEL

// An item's share of a step, as the boxes that kernels are called with.
#pragma once
#include <algorithm>
#include <cstddef>
#include <utility>

#include "plan.hpp"

namespace thalweg {

// What a share of an array is a multiple of, in elements: whole cache lines, so that no two threads
// write to one where the array begins on one.
constexpr std::size_t line = 64;

// Of no limit to what one call is given.
constexpr std::size_t all_at_once = std::size_t{0} - 1;

inline Box linear_box(const Item& item, std::size_t begin, std::size_t end) {
    const std::size_t size = size_of(item.dtype);
    const auto at = static_cast<std::ptrdiff_t>(begin * size);
    const auto stride = static_cast<std::ptrdiff_t>(size);
    return {1,
            end - begin,
            {item.param + at, 0, stride},
            {const_cast<char*>(item.grad) + at, 0, stride},
            {item.state + (item.state ? at : 0), 0, stride},
            item.dtype};
}

// Share `share` of `shares`: dense(box, its number in the traversal) for each box, where it goes by
// rows by_rows(box). A box of a run, or of rows, has at most about `most` elements.
template <class Dense, class ByRows>
void walk(const Item& item, std::size_t share, std::size_t shares, std::size_t most,
          const Dense& dense, const ByRows& by_rows) {
    const auto part = [&](std::size_t whole) {
        return std::pair(whole / shares * share + std::min(share, whole % shares),
                         whole / shares * (share + 1) + std::min(share + 1, whole % shares));
    };
    if (item.linear) {
        std::size_t begin = 0, end = item.size;
        if (shares != 1) { // no division for the small ones
            const auto [first, last] = part(ceil_div(item.size, line));
            begin = first * line;
            end = std::min(last * line, item.size);
        }
        for (; end - begin > most; begin += most) dense(linear_box(item, begin, begin + most), 0);
        return dense(linear_box(item, begin, end), 0);
    }
    if (item.by_row || item.sparse) {
        RowBox box = item.rows->box;
        if (item.sparse) item.rows->rows.describe(box);
        auto [first, last] = part(item.sparse ? item.rows->rows.distinct() : item.rows->table);
        const std::size_t together = std::max(most / std::max<std::size_t>(box.row_size, 1), //
                                              std::size_t{1});
        do {
            box.first = first;
            box.last = first = last - first > together ? first + together : last;
            by_rows(box);
        } while (first != last);
        return;
    }
    const auto [first, last] = part(item.traversal.boxes());
    for (std::size_t i = first; i < last; ++i) {
        Box box = item.traversal.box(i, item.param, item.grad, item.state);
        box.grad_dtype = item.grad_dtype;
        dense(box, i);
    }
}

} // namespace thalweg

#include "rows.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <new>
#include <utility>

namespace thalweg {

namespace {

std::int64_t number_at(const RowNumbers& numbers, std::size_t i) {
    const char* const from = numbers.data + static_cast<std::ptrdiff_t>(i) * numbers.stride;
    if (numbers.wide) {
        std::int64_t wide;
        std::memcpy(&wide, from, sizeof wide);
        return wide;
    }
    std::int32_t narrow;
    std::memcpy(&narrow, from, sizeof narrow);
    return narrow;
}

constexpr unsigned widest_digit = 11; // its counters stay in L1

// Sorts by the bits from `low` to `high`; equal ones keep their order.
void radix_sort(std::vector<std::uint64_t>& keys, std::vector<std::uint64_t>& spare, unsigned low,
                unsigned high) {
    spare.resize(keys.size());
    // Counters are worth clearing up to about as many as there are keys.
    const unsigned most =
        std::clamp(static_cast<unsigned>(std::bit_width(keys.size())), 6U, widest_digit);
    const unsigned passes = (high - low + most - 1) / most;
    for (unsigned pass = 0; pass < passes; ++pass) {
        const unsigned shift = low + (high - low) * pass / passes;
        const unsigned width = low + (high - low) * (pass + 1) / passes - shift;
        const std::uint64_t mask = (std::uint64_t{1} << width) - 1;
        std::array<std::size_t, std::size_t{1} << widest_digit> next;
        std::fill_n(next.begin(), mask + 1, std::size_t{0});
        for (const std::uint64_t key : keys) ++next[key >> shift & mask];
        std::size_t sum = 0;
        for (std::size_t i = 0; i <= mask; ++i) sum += std::exchange(next[i], sum);
        for (const std::uint64_t key : keys) spare[next[key >> shift & mask]++] = key;
        keys.swap(spare);
    }
}

} // namespace

std::optional<BadRow> Rows::sort(const RowNumbers& numbers, std::size_t table) {
    // A row's number and its position share a word.
    shift_ = static_cast<unsigned>(std::bit_width(numbers.count));
    const auto row_bits = static_cast<unsigned>(std::bit_width(table == 0 ? 0 : table - 1));
    if (shift_ + row_bits > 64) throw std::bad_alloc(); // over 2^32 of both
    sorted_.resize(numbers.count);
    starts_.assign(1, 0);
    for (std::size_t i = 0; i < numbers.count; ++i) {
        const std::int64_t row = number_at(numbers, i);
        if (row < 0 || static_cast<std::uint64_t>(row) >= table) return BadRow{i, row};
        sorted_[i] = static_cast<std::uint64_t>(row) << shift_ | i;
    }
    radix_sort(sorted_, spare_, shift_, shift_ + row_bits);
    for (std::size_t i = 1; i < sorted_.size(); ++i)
        if (sorted_[i] >> shift_ != sorted_[i - 1] >> shift_) starts_.push_back(i);
    if (!sorted_.empty()) starts_.push_back(sorted_.size());
    return std::nullopt;
}

void Rows::describe(RowBox& box) const {
    box.sorted = sorted_.data();
    box.shift = shift_;
    box.starts = starts_.data();
}

} // namespace thalweg

// The rows of one array's gradient in one step: read once, sorted, those of equal number together.
#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "kernel/contract.hpp"

namespace thalweg {

// The row numbers as the caller gave them.
struct RowNumbers {
    const char* data;
    std::ptrdiff_t stride; // in bytes
    bool wide;             // int64, else int32
    std::size_t count;
};

struct BadRow {
    std::size_t position;
    std::int64_t row;
};

class Rows {
  public:
    // For a table of this many rows. Returns the first number that is none of its rows; nothing
    // else is valid then. Throws std::bad_alloc. The numbers are read once: whoever changes them
    // meanwhile changes which rows are meant, not where memory is written.
    std::optional<BadRow> sort(const RowNumbers& numbers, std::size_t table);

    std::size_t distinct() const { return starts_.size() - 1; }
    // Fills what is the rows' in a box.
    void describe(RowBox& box) const;

  private:
    // Kept between steps; as large as the largest batch so far.
    std::vector<std::uint64_t> sorted_, spare_;
    std::vector<std::size_t> starts_ = {0};
    unsigned shift_ = 0;
};

} // namespace thalweg

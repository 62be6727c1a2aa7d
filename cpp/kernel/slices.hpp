// What ranks hand each other: slices of one gradient, added in order, and the norm's sums of whole
// blocks. Each is one read of its operands.
#pragma once
#include "norm.hpp"

namespace thalweg::THALWEG_LEVEL {

// out <- ((p0 + p1) + p2) + ...; out may be one of them.
template <class T> void add_slices(void* to, const void* const* parts, size_t count, size_t size) {
    auto* out = static_cast<T*>(to);
    T sum[tile];
    for (size_t at = 0; at < size; at += tile) {
        const size_t n = size - at < tile ? size - at : tile;
        const T* first = static_cast<const T*>(parts[0]) + at;
        for (size_t j = 0; j < n; ++j) sum[j] = first[j];
        for (size_t p = 1; p < count; ++p) {
            const T* part = static_cast<const T*>(parts[p]) + at;
            for (size_t j = 0; j < n; ++j) sum[j] = sum[j] + part[j];
        }
        for (size_t j = 0; j < n; ++j) out[at + j] = sum[j];
    }
}

template <class T> void sum_blocks(const void* values, size_t size, double* sums) {
    for (size_t at = 0; at < size; at += norm_block) {
        Sum sum;
        sum.add(static_cast<const T*>(values) + at,
                size - at < norm_block ? size - at : norm_block);
        *sums++ = sum.total();
    }
}

} // namespace thalweg::THALWEG_LEVEL

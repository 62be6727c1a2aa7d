// The numeric options and their ranges, in one table: asked at construction, when an option is set,
// and when a schedule returns a value in the middle of a step.
#pragma once
#include <cstddef>

#include "kernel/contract.hpp"

namespace thalweg {

struct OptionSpec {
    const char* name;
    double Options::* field;
    const char* range;
    double low, high;
    bool low_open, high_open;
    bool may_underflow; // a float32 array may see 0 although the option may not be 0
    bool may_vary;      // accepts a callable: step -> float

    // Holds for `value` itself and, for float32 arrays, for `value` as they will see it.
    bool accepts(double value, bool float32) const;
};

constexpr std::size_t option_count = 13;
extern const OptionSpec option_specs[option_count];
const OptionSpec* find_option(const char* name);

// Decoupled decay multiplies by 1 - lr * weight_decay, which has to be finite in the arrays' dtype
// although either option is.
bool is_decay_finite(const Options& options, bool float32);

} // namespace thalweg

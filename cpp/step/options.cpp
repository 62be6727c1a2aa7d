#include "options.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "thread/floatmode.hpp"

namespace thalweg {

namespace {
constexpr double infinity = std::numeric_limits<double>::infinity();
}

const OptionSpec option_specs[option_count] = {
    {"lr", &Options::lr, "a finite number >= 0", 0, infinity, false, true, true, true},
    {"momentum", &Options::momentum, "a number from 0 to 1", 0, 1, false, false, true, true},
    {"dampening", &Options::dampening, "a number from 0 to 1", 0, 1, false, false, true, false},
    {"weight_decay", &Options::weight_decay, "a finite number >= 0", 0, infinity, false, true, true,
     true},
    {"eps", &Options::eps, "a finite number > 0", 0, infinity, true, true, false, false},
    {"lr_decay", &Options::lr_decay, "a finite number >= 0", 0, infinity, false, true, true, false},
    {"initial_accumulator_value", &Options::initial_accumulator_value, "a finite number >= 0", 0,
     infinity, false, true, true, false},
    {"max_norm", &Options::max_norm, "a number > 0, or None", 0, infinity, true, false, false,
     false},
    {"max_array_norm", &Options::max_array_norm, "a number > 0, or None", 0, infinity, true, false,
     false, false},
    {"norm_eps", &Options::norm_eps, "a finite number >= 0", 0, infinity, false, true, true, false},
    {"max_value", &Options::max_value, "a finite number > 0, or None", 0, infinity, true, true,
     false, false},
    {"weight_average", &Options::weight_average, "a number from 0 to below 1, or None", 0, 1, false,
     true, true, false},
    {"scale", &Options::scale, "a finite number > 0", 0, infinity, true, true, true, false},
};

const OptionSpec* find_option(const char* name) {
    for (const OptionSpec& spec : option_specs)
        if (std::strcmp(spec.name, name) == 0) return &spec;
    return nullptr;
}

bool OptionSpec::accepts(double value, bool float32) const {
    const auto above = [&](double x, bool open) { return open ? x > low : x >= low; };
    const auto below = [&](double x) { return high_open ? x < high : x <= high; };
    if (!above(value, low_open) || !below(value)) return false;
    if (!float32) return true;
    const double seen = static_cast<float>(value);
    return above(seen, low_open && !may_underflow) && below(seen);
}

bool is_decay_finite(const Options& options, bool float32) {
    if (!options.decoupled || options.weight_decay == 0) return true;
    const DefaultFloatMode mode;
    const double shrink = 1.0 - settled(options.lr) * options.weight_decay;
    return std::isfinite(float32 ? static_cast<float>(shrink) : shrink);
}

} // namespace thalweg

// What all gradients of a step decide together: the norm that clips them, and whether something
// that is not finite keeps the step from being taken.
#pragma once
#include <cmath>
#include <cstddef>
#include <functional>
#include <string>
#include <vector>

#include "leaf.hpp"
#include "step/plan.hpp"

namespace thalweg {

enum class OnNonfinite { propagate, skip, raise };
constexpr const char* nonfinite_names[] = {"propagate", "skip", "raise"};

// The one called so; ValueError for another word.
OnNonfinite nonfinite_called(py::handle word);

// What holds for all arrays of a step.
struct Limits {
    double max_norm = 0, max_value = 0; // 0: none
    OnNonfinite on_nonfinite = OnNonfinite::propagate;

    bool judge() const { return on_nonfinite != OnNonfinite::propagate; }
    bool measure() const { return judge() || max_norm != 0; }
};

// All that a step changes once it has passed its checks. False: it is left out, and nothing has
// changed. Where there is a max_norm, the norm is left in `norm` and the factor given to
// `set_clip`.
template <class SetClip>
bool take_step(Plan& plan, std::size_t bytes, const Limits& limits, double& norm,
               const SetClip& set_clip) {
    if (limits.measure()) plan.measure(bytes);
    if (limits.judge() && plan.any_bad()) return false;
    if (limits.max_norm != 0) {
        const double found = plan.norm();
        if (limits.judge() && !std::isfinite(found)) return false;
        set_clip(Plan::clip(limits.max_norm, found));
        if (limits.judge() && plan.any_overflow()) return false;
        norm = found;
    } else if (limits.judge() && plan.any_overflow()) {
        return false;
    }
    plan.run(bytes);
    return true;
}

// FloatingPointError, naming each gradient that was found not to be finite, or whose square is not;
// `what` is what they are called.
[[noreturn]] void refuse_nonfinite(const Plan& plan, const std::vector<Leaf>& leaves,
                                   const char* what);
// The same for gradients that are no NumPy arrays: how an item's is called, and its shape.
using NameOf = std::function<std::string(std::size_t)>;
using ShapeOf = std::function<std::vector<std::ptrdiff_t>(std::size_t)>;
[[noreturn]] void refuse_nonfinite(const Plan& plan, const char* what, const NameOf& name_of,
                                   const ShapeOf& shape_of);

} // namespace thalweg

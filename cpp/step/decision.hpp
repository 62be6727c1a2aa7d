// What the gradients of a step decide: the norms that clip them, and whether something that is not
// finite keeps the step, or a part of it, from being taken.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>
#include <string_view>

#include "plan.hpp"

namespace thalweg {

enum class OnNonfinite { propagate, skip, raise };

struct Limits {
    double max_norm = 0, max_array_norm = 0, max_value = 0; // 0: none
    double norm_eps = 1e-6;
    OnNonfinite on_nonfinite = OnNonfinite::propagate;

    bool judge() const { return on_nonfinite != OnNonfinite::propagate; }
    bool measure() const { return judge() || max_norm != 0 || max_array_norm != 0; }
    // The number of this name; null: there is none. Only norm_eps cannot be left out with None.
    static double Limits::* find(std::string_view name);
    static bool is_optional(std::string_view name) { return name != "norm_eps"; }
};

// One plan of a step over several: threads take part in all of them together. A part that its own
// limits leave out does not keep the others from being taken; what is refused refuses the step.
struct Part {
    Plan* plan = nullptr;
    Limits limits{};
    double norm = -1; // of this part alone, where it has a max_norm of its own
    bool measured = false, taken = false, refused = false;
};
using Parts = std::span<Part>;

// Threads that it pays to use for `bytes` of params.
int threads_for(Parts parts, std::size_t bytes);
// The steps of the parts that are taken, each counted.
void run(Parts parts, std::size_t bytes);
// Reads the gradients of the parts that are measured.
void measure(Parts parts, std::size_t bytes);
// Gradients that a step left out has used: of the parts that are not taken, where those are zeroed.
void zero_left_out(Parts parts);
// The global norm of those that are taken, one running sum in their order.
double norm(Parts parts);

enum class Outcome { applied, skipped, refused };

// Leaves parts out, or says that the step is not to be taken.
template <class SetClip>
Outcome decide(Parts parts, const Limits& whole, double& norm_of_all, const SetClip& set_clip) {
    const auto judged = [&](const Part& p) { return whole.judge() || p.limits.judge(); };
    // False: the step ends here.
    const auto go_on_without = [&](Part& part) {
        part.taken = false;
        const bool raises =
            (whole.judge() ? whole : part.limits).on_nonfinite == OnNonfinite::raise;
        part.refused = raises;
        if (whole.judge())
            for (Part& other : parts) other.taken = false, other.refused = raises;
        return !whole.judge() && !raises;
    };
    const auto ended = [&](const Part& part) {
        return part.refused ? Outcome::refused : Outcome::skipped;
    };
    for (Part& part : parts)
        if (judged(part) && part.plan->any_bad() && !go_on_without(part)) return ended(part);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        Part& part = parts[i];
        if (part.taken && part.limits.max_array_norm != 0 &&
            !part.plan->clip_each(part.limits.max_array_norm, part.limits.norm_eps) &&
            judged(part) && !go_on_without(part))
            return ended(part);
        if (!part.taken || part.limits.max_norm == 0) continue;
        part.norm = norm({&part, 1});
        if (judged(part) && !std::isfinite(part.norm)) {
            if (!go_on_without(part)) return ended(part);
        } else {
            set_clip(i, Plan::clip(part.limits.max_norm, part.norm, part.limits.norm_eps));
        }
    }
    if (whole.max_norm != 0) {
        norm_of_all = norm(parts);
        if (whole.judge() && !std::isfinite(norm_of_all) && !go_on_without(parts[0]))
            return ended(parts[0]);
        for (std::size_t i = 0; i < parts.size(); ++i)
            set_clip(i, Plan::clip(whole.max_norm, norm_of_all, whole.norm_eps));
    }
    for (Part& part : parts)
        if (part.taken && judged(part) && part.plan->any_overflow() && !go_on_without(part))
            return ended(part);
    return Outcome::applied;
}

// All that a step changes once it has passed its checks; `whole` is what holds for all parts
// together. Nothing has changed unless it was applied, and nothing of a part that is not taken.
// The factor that a norm clips part i by is given to set_clip(i, factor). Norms are left in the
// parts and in `norm_of_all`, where there is a max_norm.
template <class SetClip>
Outcome take_step(Parts parts, std::size_t bytes, const Limits& whole, double& norm_of_all,
                  const SetClip& set_clip) {
    bool measured = false;
    for (Part& part : parts) {
        part.taken = true;
        part.refused = false;
        part.plan->clip_alike();
        part.measured = whole.measure() || part.limits.measure();
        measured |= part.measured;
    }
    if (measured) {
        measure(parts, bytes);
        const Outcome outcome = decide(parts, whole, norm_of_all, set_clip);
        if (outcome != Outcome::refused) zero_left_out(parts);
        if (outcome != Outcome::applied) return outcome;
        if (std::none_of(parts.begin(), parts.end(), [](const Part& p) { return p.taken; }))
            return Outcome::skipped;
    }
    run(parts, bytes);
    return Outcome::applied;
}

// The same for a part by itself.
template <class SetClip> void take_part(Part& part, std::size_t bytes, const SetClip& set_clip) {
    double unused = 0;
    take_step({&part, 1}, bytes, {}, unused,
              [&set_clip](std::size_t, double clip) { set_clip(clip); });
}

} // namespace thalweg

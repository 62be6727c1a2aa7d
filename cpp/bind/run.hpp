// From names to kernels, and a plan's run around the GIL.
#pragma once
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "gil.hpp"
#include "leaf.hpp"
#include "step/decision.hpp"
#include "step/level.hpp"
#include "thread/fork.hpp"
#include "thread/pool.hpp"

namespace thalweg {

inline const Kernel& kernel_called(const Level& level, const std::string& name) {
    const Kernel* kernel = find_kernel(level, name);
    if (!kernel) throw py::value_error("kernel: expected one of this build's, received " + name);
    return *kernel;
}

inline void set_kernel(Item& item, const Level& level, const Kernel& kernel) {
    const bool single = item.dtype == Dtype::float32;
    item.kernel = &kernel;
    item.update = single ? kernel.float32 : kernel.float64;
    item.update_rows = single ? kernel.rows_float32 : kernel.rows_float64;
    item.measure = single ? level.measure_float32 : level.measure_float64;
    item.measure_rows = single ? level.measure_rows_float32 : level.measure_rows_float64;
    if (!item.average) return;
    const Kernel& average = level.kernels[static_cast<std::size_t>(KernelIndex::average)];
    item.average->update = single ? average.float32 : average.float64;
    item.average->update_rows = single ? average.rows_float32 : average.rows_float64;
}

// From here on a step lasts far longer than letting the GIL go and taking it back.
constexpr std::size_t long_step = 65536;

// A step that is over at once and has nothing to decide needs none of the phases below, which would
// cost a small model a fifth of it. False: it is not such a step.
inline bool run_short(Plan& plan, const Limits& limits) {
    if (limits.measure() || plan.has_rows_to_sort() || plan.bytes() >= long_step) return false;
    plan.run_at_once();
    return true;
}

struct Ran {
    // A row that its param does not have, and the part it is of: nothing was executed.
    std::optional<Plan::Refused> bad;
    std::size_t bad_part = 0;
    bool threads_given = true; // false: the system refused a thread
};

// Calls execute(bytes of params that it concerns), in one stretch that no fork cuts in two; without
// the GIL where those are `long_from` or more.
template <class Execute>
Ran run_parts(Parts parts, const Execute& execute, std::size_t long_from = long_step) {
    std::size_t bytes = 0;
    for (const Part& part : parts) bytes += part.plan->bytes();
    Ran ran;
    const auto go = [&] {
        for (std::size_t i = 0; i < parts.size(); ++i) {
            if (!parts[i].plan->has_rows_to_sort()) continue;
            ran.bad = parts[i].plan->sort_rows();
            ran.bad_part = i;
            if (ran.bad) return;
        }
        if (const int threads = threads_for(parts, bytes); threads > 1)
            ran.threads_given = make_workers(threads);
        execute(bytes);
    };
    if (bytes < long_from) {
        go();
        return ran;
    }
    const WithoutGil without_gil;
    const Running running;
    go();
    return ran;
}

// The same; throws IndexError if a gradient names a row that its param does not have. `leaves` are
// those of each part. False: the system refused a thread.
template <class Execute>
bool run(Parts parts, std::span<const std::vector<Leaf>* const> leaves, const Execute& execute) {
    const Ran ran = run_parts(parts, execute);
    if (ran.bad) (*leaves[ran.bad_part])[ran.bad->item].refuse_row(ran.bad->row);
    return ran.threads_given;
}

// Once the step is complete: a warning may run code of the caller's, or be an error.
inline void warn_of_refused_threads() {
    if (PyErr_WarnEx(PyExc_RuntimeWarning,
                     "thalweg: the system refused a thread; steps run on those there are, with the "
                     "same results; call set_num_threads() with fewer, or raise the limit",
                     1) != 0)
        throw py::error_already_set();
}

} // namespace thalweg

// From names to kernels, and a plan's run around the GIL.
#pragma once
#include <string>

#include "../fork.hpp"
#include "../level.hpp"
#include "../plan.hpp"
#include "../pool.hpp"
#include "gil.hpp"

namespace thalweg {

inline const Kernel& kernel_called(const Level& level, const std::string& name) {
    const Kernel* kernel = find_kernel(level, name);
    if (!kernel) throw py::value_error("kernel: expected one of this build's, received " + name);
    return *kernel;
}

inline Update update_of(const Kernel& kernel, Dtype dtype) {
    return dtype == Dtype::float32 ? kernel.float32 : kernel.float64;
}

// Calls execute(bytes of the active params), in one stretch that no fork cuts in two.
template <class Execute> void run(const Plan& plan, const Execute& execute) {
    // From here on a step lasts far longer than letting the GIL go and taking it back.
    constexpr std::size_t long_step = 65536;
    std::size_t bytes = 0;
    for (const Item& item : plan.items)
        if (item.active) bytes += item.size * size_of(item.dtype);
    if (bytes < long_step) return execute(bytes);
    bool threads_given = true;
    {
        const WithoutGil without_gil;
        const Running running;
        if (const int threads = plan.threads(bytes); threads > 1)
            threads_given = make_workers(threads);
        execute(bytes);
    }
    // Only now: a warning may run code of the caller's.
    if (!threads_given &&
        PyErr_WarnEx(PyExc_RuntimeWarning,
                     "thalweg: the system refused a thread; steps run on those there are, with the "
                     "same results; call set_num_threads() with fewer, or raise the limit",
                     1) != 0)
        throw py::error_already_set();
}

} // namespace thalweg

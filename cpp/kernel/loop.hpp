// A rule over dense elements: all of the kernels end here.
#pragma once
#include "tiles.hpp"

namespace thalweg::THALWEG_LEVEL {

template <class Rule, class T = typename Rule::value_type>
THALWEG_NOINLINE void loop(const void* rule, T* __restrict w, const T* __restrict g,
                           [[maybe_unused]] T* __restrict state, size_t n) {
    const Rule apply = *static_cast<const Rule*>(rule);
    for (size_t i = 0; i < n; ++i)
        if constexpr (Rule::has_state)
            apply(w[i], g[i], state[i]);
        else
            apply(w[i], g[i]);
}

// Elements of a long run before its first cache line: vectors that lie across two lines cost up to
// a third of a step. The state lies as the param does, see many_lines; a gradient often.
template <class T> size_t before_line(const void* run, size_t n) {
    if (n * sizeof(T) < many_lines) return 0;
    return (0 - reinterpret_cast<std::uintptr_t>(run)) % cache_line / sizeof(T);
}

template <class Rule, class T = typename Rule::value_type>
THALWEG_NOINLINE void loop_on_lines(const void* rule, T* w, const T* g, T* state, size_t n) {
    if (const size_t head = before_line<T>(w, n); head != 0) {
        loop<Rule>(rule, w, g, state, head);
        w += head, g += head, n -= head;
        if constexpr (Rule::has_state) state += head;
    }
    loop<Rule>(rule, w, g, state, n);
}

template <class T> using Loop = void (*)(const void* rule, T* w, const T* g, T* state, size_t n);

} // namespace thalweg::THALWEG_LEVEL

// A rule over dense elements: all of the kernels end here.
#pragma once
#include "tiles.hpp"

namespace thalweg::THALWEG_LEVEL {

template <class Rule, class T = typename Rule::value_type>
[[gnu::noinline]] void loop(const void* rule, T* __restrict w, const T* __restrict g,
                            [[maybe_unused]] T* __restrict state, size_t n) {
    const Rule apply = *static_cast<const Rule*>(rule);
    for (size_t i = 0; i < n; ++i)
        if constexpr (Rule::has_state)
            apply(w[i], g[i], state[i]);
        else
            apply(w[i], g[i]);
}

template <class T> using Loop = void (*)(const void* rule, T* w, const T* g, T* state, size_t n);

} // namespace thalweg::THALWEG_LEVEL

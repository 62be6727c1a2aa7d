// No rule: the loads and stores of one with a state (3 in, 2 out) and no arithmetic. How long
// memory alone takes, for the benches. It rotates the three buffers' values, so it wants scratch.
#pragma once

namespace thalweg::THALWEG_LEVEL {

template <class T> struct Limit {
    using value_type = T;
    static constexpr bool has_state = true, by_row = false, squares = false;

    template <class Options> static double rate(const Options& o, double) { return o.lr; }
    template <class Options> Limit(const Options&, double) {}

    // The comparison keeps the load of w: without a use the compiler would drop it.
    void operator()(T& w, T g, T& state) const {
        const T old = w;
        w = state;
        state = g < old ? g : old;
    }
};

} // namespace thalweg::THALWEG_LEVEL

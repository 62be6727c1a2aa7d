// The average of the weights over the steps: Polyak and Juditsky 1992, in its exponential form.
#pragma once

namespace thalweg::THALWEG_LEVEL {

//  a <- beta*a + (1-beta)*w,  in the first step of the average a <- w.
// What a step writes is the average, and its gradient is the weights.
template <class T> struct Average {
    using value_type = T;
    static constexpr bool has_state = false, by_row = false, squares = false;
    T beta, rest;
    bool first;

    template <class Options> static double rate(const Options& o, double) { return o.lr; }
    // t counts the steps the average has taken before this one, or is any number but 0.
    template <class Options>
    Average(const Options& o, double t)
        : beta(static_cast<T>(o.weight_average)), rest(static_cast<T>(1.0 - o.weight_average)),
          first(t == 0.0) {}

    void operator()(T& average, T w) const {
        const T mixed = beta * average + rest * w;
        average = first ? w : mixed;
    }
};

} // namespace thalweg::THALWEG_LEVEL

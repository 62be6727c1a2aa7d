// Adagrad: Duchi, Hazan and Singer 2011; D2L 11.7.
// Every operator is one rounding; the scalars are computed in float64 and rounded once.
#pragma once
#include <cmath>

namespace thalweg::THALWEG_LEVEL {

//  s <- s + g*g
//  r <- sqrt(s + eps)  (inside)   or   sqrt(s) + eps  (outside)
//  w <- w - (clr*g) / r,  clr = lr / (1 + t*lr_decay)
template <class T, bool inside> struct Adagrad {
    using value_type = T;
    static constexpr bool has_state = true;
    T clr, eps;

    // t counts the steps this array has taken before this one.
    template <class Options> static double rate(const Options& o, double t) {
        return o.lr / (1.0 + t * o.lr_decay);
    }
    template <class Options>
    Adagrad(const Options& o, double t)
        : clr(static_cast<T>(rate(o, t))), eps(static_cast<T>(o.eps)) {}

    void operator()(T& w, T g, T& accumulator) const {
        const T s = accumulator + g * g;
        accumulator = s;
        const T r = inside ? std::sqrt(s + eps) : std::sqrt(s) + eps;
        w = w - (clr * g) / r;
    }
};

template <class T> using AdagradInside = Adagrad<T, true>;
template <class T> using AdagradOutside = Adagrad<T, false>;

} // namespace thalweg::THALWEG_LEVEL

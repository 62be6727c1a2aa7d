// SGD without and with momentum: D2L 11.6; Sutskever et al. 2013; distill.pub/2017/momentum.
// Every operator is one rounding; the scalars are computed in float64 and rounded once.
#pragma once
#include <cmath>
#include <limits>

namespace thalweg::THALWEG_LEVEL {

//  w <- w - lr * g
template <class T> struct Descent {
    using value_type = T;
    static constexpr bool has_state = false, by_row = false, squares = false;
    T lr;

    template <class Options> static double rate(const Options& o, double) { return o.lr; }
    template <class Options> Descent(const Options& o, double) : lr(static_cast<T>(o.lr)) {}

    void operator()(T& w, T g) const { w = w - lr * g; }
};

enum class Form { heavy_ball, classic, ema };

//  heavy_ball  v <- mu*v + d*g       u = v  or  g + mu*v      (nesterov)   w <- w - lr*u
//  classic     v <- mu*v - lr*g      u = v  or  mu*v - lr*g   (nesterov)   w <- w + u
//  ema         v <- mu*v + (1-mu)*g  u = v                                 w <- w - lr*u
template <class T, Form form, bool nesterov> struct Momentum {
    using value_type = T;
    static constexpr bool has_state = true, by_row = false, squares = false;
    T lr, mu, d;

    // t counts the steps this array has taken before this one. A product with d = 1 is exact.
    template <class Options> static double weight(const Options& o, double t) {
        if (form == Form::ema) return 1.0 - o.momentum;
        return t == 0.0 ? 1.0 : 1.0 - o.dampening;
    }
    template <class Options> static double rate(const Options& o, double) { return o.lr; }
    template <class Options>
    Momentum(const Options& o, double t)
        : lr(static_cast<T>(o.lr)), mu(static_cast<T>(o.momentum)),
          d(static_cast<T>(weight(o, t))) {}

    void operator()(T& w, T g, T& velocity) const {
        // A velocity without gradient would stick in the subnormal range and slow every later
        // step down twentyfold.
        constexpr T tiny = std::numeric_limits<T>::min();
        T v = form == Form::classic ? mu * velocity - lr * g : mu * velocity + d * g;
        v = std::fabs(v) < tiny ? T(0) : v;
        velocity = v;
        if constexpr (form == Form::classic) {
            const T u = nesterov ? mu * v - lr * g : v;
            w = w + u;
        } else {
            const T u = nesterov ? g + mu * v : v;
            w = w - lr * u;
        }
    }
};

template <class T> using HeavyBall = Momentum<T, Form::heavy_ball, false>;
template <class T> using HeavyBallNesterov = Momentum<T, Form::heavy_ball, true>;
template <class T> using Classic = Momentum<T, Form::classic, false>;
template <class T> using ClassicNesterov = Momentum<T, Form::classic, true>;
template <class T> using Ema = Momentum<T, Form::ema, false>;

} // namespace thalweg::THALWEG_LEVEL

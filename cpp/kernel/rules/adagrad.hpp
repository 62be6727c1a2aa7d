// Adagrad: Duchi, Hazan and Singer 2011; D2L 11.7.
// Every operator is one rounding; the scalars are computed in float64 and rounded once.
#pragma once
#include <cmath>
#include <cstddef>

namespace thalweg::THALWEG_LEVEL {

//  s <- s + g*g
//  r <- sqrt(s + eps)  (inside)   or   sqrt(s) + eps  (outside)
//  w <- w - (clr*g) / r,  clr = lr / (1 + t*lr_decay)
template <class T, bool inside> struct Adagrad {
    using value_type = T;
    static constexpr bool has_state = true, by_row = false, squares = true;
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

// The mean of a row's squares: float64, element i to lane i mod 8, the row given in parts whose
// lengths, but for the last one's, are multiples of 8.
struct MeanSquare {
    double lane[8] = {};

    template <class T> void add(const T* g, std::size_t n) {
        double sum[8];
        for (std::size_t j = 0; j < 8; ++j) sum[j] = lane[j];
        std::size_t i = 0;
        for (; i + 8 <= n; i += 8)
            for (std::size_t j = 0; j < 8; ++j) {
                const auto x = static_cast<double>(g[i + j]);
                sum[j] = sum[j] + x * x;
            }
        for (std::size_t j = 0; i + j < n; ++j) {
            const auto x = static_cast<double>(g[i + j]);
            sum[j] = sum[j] + x * x;
        }
        for (std::size_t j = 0; j < 8; ++j) lane[j] = sum[j];
    }
    double over(std::size_t row_size) const {
        const double low = (lane[0] + lane[1]) + (lane[2] + lane[3]);
        const double high = (lane[4] + lane[5]) + (lane[6] + lane[7]);
        return (low + high) / static_cast<double>(row_size);
    }
};

// One accumulator for a row, as in FBGEMM's rowwise_adagrad:
//  s <- s + mean(g*g),  r as above, for the row;  w <- w - (clr*g) / r  for its elements
template <class T, bool inside> struct AdagradRow {
    using value_type = T;
    using Squares = MeanSquare;
    static constexpr bool has_state = true, by_row = true, squares = true;
    T clr, eps;

    template <class Options> static double rate(const Options& o, double t) {
        return Adagrad<T, inside>::rate(o, t);
    }
    template <class Options>
    AdagradRow(const Options& o, double t)
        : clr(static_cast<T>(rate(o, t))), eps(static_cast<T>(o.eps)) {}

    T root(T& accumulator, T mean) const {
        const T s = accumulator + mean;
        accumulator = s;
        return inside ? std::sqrt(s + eps) : std::sqrt(s) + eps;
    }
    void operator()(T& w, T g, T r) const { w = w - (clr * g) / r; }
};

template <class T> using AdagradRowInside = AdagradRow<T, true>;
template <class T> using AdagradRowOutside = AdagradRow<T, false>;

} // namespace thalweg::THALWEG_LEVEL

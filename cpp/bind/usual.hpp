// The usual arrays of a functional call, put straight into a plan: exact ndarrays of one dtype,
// each a run of adjacent elements or of one axis, apart in memory. For runs nothing is allocated
// where as many were there before. What is not usual is not refused here: it goes to apply(), which
// looks again and has the words.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <vector>

#include "group.hpp"
#include "step/places.hpp"
#include "step/plan.hpp"

namespace thalweg {

class Usual {
  public:
    // One for each thread: while one lets the GIL go, another may call.
    static Usual& of_this_thread();

    void begin(const Level& level, const Kernel& kernel, std::size_t count);
    // Each of these is false for what is not usual. `grad` may be None; `state` is null for a rule
    // without one.
    bool add(PyObject* param, PyObject* grad, PyObject* state);
    bool add_rows(PyObject* table, PyObject* rows, PyObject* values, PyObject* state);
    bool are_apart();

    bool any_float32() const { return float32_; }

    // The last of it; both hold for all arrays. Where there is a max_norm, the norm is left
    // in `norm`. Nothing has changed unless it was applied.
    enum class Outcome { applied, skipped, unusual };
    Outcome run(const Options& options, const Limits& limits, double& norm);
    // False: one of the operands lies there.
    bool is_apart_from(const Span& span) const { return places_.are_apart_from(span); }

  private:
    Item& put(PyObject* param, const Span& at, PyObject* state, const Span& state_at,
              const Span& grad);
    bool add_strided(PyObject* param, PyObject* grad, PyObject* state);

    const Level* level_ = nullptr;
    const Kernel* kernel_ = nullptr;
    Plan plan_;
    Options options_;
    std::vector<PyObject*> arrays_; // borrowed
    std::size_t count_ = 0;
    bool float32_ = false, in_c_order_ = true;
    Places places_;
};

} // namespace thalweg

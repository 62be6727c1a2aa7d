// The options of one group of arrays: numbers, flags and schedules, and what they are in this step.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <limits>
#include <string>

#include "step/decision.hpp"
#include "step/options.hpp"

namespace thalweg {

namespace py = pybind11;

// A Python number as float64, inside the option's range; TypeError or ValueError.
double option_number(const OptionSpec& spec, py::handle value, bool float32,
                     const std::string& what);

// True or False, Python's or NumPy's; TypeError.
bool bool_of(py::handle value, const std::string& what);

// The limit of this name: a number, or None where it is left out.
inline py::object limit_of(const Limits& limits, const std::string& name) {
    const double value = limits.*Limits::find(name);
    return value == 0 && Limits::is_optional(name) ? py::none() : py::object(py::float_(value));
}
// What is to be kept for such a value; TypeError or ValueError.
inline double limit_number(const std::string& name, const py::object& value, bool float32) {
    const bool none = value.is_none() && Limits::is_optional(name);
    return none ? 0.0 : option_number(*find_option(name.c_str()), value, float32, name);
}

class Group {
  public:
    explicit Group(std::string its_kernel) : kernel(std::move(its_kernel)) {}

    void set(const std::string& name, py::handle value, const std::string& what);
    // Without code of the caller's, but for what the schedule that was there does when it goes:
    // the caller holds it. `number` is in the option's range; `schedule` may be null.
    py::object set(const OptionSpec& spec, double number, py::object schedule);
    py::object get(const std::string& name) const;
    const Options& constant() const { return constant_; }

    // What is set from here on holds from the next step. All groups of a step begin it before a
    // schedule is asked, which runs the caller's code.
    void begin_step(double scale, const Limits& limits);
    // The values of the schedules there were at the beginning.
    void ask_schedules(std::uint64_t step_count);
    // Whether `current` is what the two would make of it. A max_norm writes its factor there.
    bool is_fresh(double scale, const Limits& limits) const {
        return fresh_ && current.scale == scale && limits.max_norm == 0 &&
               current.max_value == limits.max_value && current.judged == limits.judge();
    }
    // The rate of the last step that was taken with this group and not frozen; NaN: none yet.
    double last_lr = std::numeric_limits<double>::quiet_NaN();
    void note_rate() {
        if (!current.frozen) last_lr = current.lr;
    }

    int traverse(visitproc visit, void* arg) const;
    void clear();

    std::string kernel;
    std::string called;   // "" where it has no name
    bool float32 = false; // holds a float32 array
    Options current;

  private:
    using Schedules = std::array<py::object, option_count>;
    void check_decay() const;

    Options constant_;
    Schedules schedules_, asked_;
    bool scheduled_ = false;
    bool fresh_ = false;
};

} // namespace thalweg

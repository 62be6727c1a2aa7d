// The options of one group of arrays: numbers, flags and schedules, and what they are in this step.
#pragma once
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <string>

#include "../options.hpp"

namespace thalweg {

namespace py = pybind11;

// A Python number as float64, inside the option's range; TypeError or ValueError.
double option_number(const OptionSpec& spec, py::handle value, bool float32,
                     const std::string& what);

// What holds for all groups of a step.
enum class OnNonfinite { propagate, skip, raise };
struct Limits {
    double max_norm = 0, max_value = 0; // 0: none
    OnNonfinite on_nonfinite = OnNonfinite::propagate;
};

class Group {
  public:
    explicit Group(std::string its_kernel) : kernel(std::move(its_kernel)) {}

    void set(const std::string& name, py::handle value, const std::string& what);
    py::object get(const std::string& name) const;
    const Options& constant() const { return constant_; }

    // Fills `current`; asks the schedules, which run the caller's code.
    void refresh(std::uint64_t step_count, double scale, const Limits& limits);
    // Whether `current` is what refresh() would make of it.
    bool is_fresh(double scale) const { return fresh_ && current.scale == scale; }
    void forget_limits() { fresh_ = false; }

    int traverse(visitproc visit, void* arg) const;
    void clear();

    std::string kernel;
    bool float32 = false; // holds a float32 array
    Options current;

  private:
    Options constant_;
    std::array<py::object, option_count> schedules_;
    bool scheduled_ = false;
    bool fresh_ = false;
};

} // namespace thalweg

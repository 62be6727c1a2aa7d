// The gradients of a step that zeroes them: each can be written, and lies apart from the others.
#pragma once
#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "step/places.hpp"

namespace thalweg {

namespace py = pybind11;

class Zeroed {
  public:
    void begin() { now_.clear(); }
    // A gradient that has passed the other checks, and whether the step zeroes it or only reads it.
    // Throws TypeError or ValueError. `linear`: it is one run of adjacent elements.
    void add(PyObject* grad, const std::string& path, bool linear, bool zeroed);
    // Throws ValueError if one that is zeroed shares memory with another.
    void check();

  private:
    struct Entry {
        Span span; // where it is one run; else empty
        PyObject* array;
        const std::string* path;
        bool zeroed;
        // Of the same memory, whichever object holds it.
        bool operator==(const Entry& other) const {
            return span.low != nullptr && span == other.span && zeroed == other.zeroed;
        }
    };
    std::vector<Entry> now_;
    std::vector<Entry> apart_; // those of the last step that was asked, which were
};

} // namespace thalweg

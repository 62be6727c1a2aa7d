// Who shares memory with whom: bounding intervals first, NumPy's exact answer where they meet.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "array.hpp"

namespace thalweg {

namespace py = pybind11;

// The bytes from the first to the last of an array's; none if it is empty.
struct Extent {
    const char *low, *high;
};
Extent extent_of(PyObject* array);

// The buffers a step writes. Later arrays are asked against all of them.
class Occupied {
  public:
    void add(PyObject* array, const Label& label);
    // Sorts, and throws ValueError if two of the buffers share memory.
    void finish();
    // Throws ValueError if the array shares memory with one of the buffers.
    void check(PyObject* array, const Label& label) const;
    // False is certain; true means: ask check().
    bool may_meet(const char* low, const char* high) const;

  private:
    struct Buffer {
        const char *low, *high;
        const char* highest; // of all buffers up to this one
        PyObject* array;
        const char* what;
        std::string path;
    };
    std::vector<Buffer> buffers_;
};

} // namespace thalweg

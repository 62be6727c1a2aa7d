// Who shares memory with whom: bounding intervals first, then, for views of one base, their places
// within its period; NumPy's exact answer where both meet.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

#include "array.hpp"

namespace thalweg {

namespace py = pybind11;

// Where an array lies: all its bytes are in [low, high), and, where `period` is not 0, in the first
// `run` of every `period` bytes from `low` on. Columns of one matrix have one period and are apart
// by that alone.
struct Extent {
    const char *low, *high;
    std::size_t period = 0, run = 0;
    bool is_empty() const { return low == high; }
    bool meets(const Extent& other) const { return low < other.high && other.low < high; }
};
Extent extent_of(PyObject* array);

// The buffers a step writes. Later arrays are asked against all of them.
class Occupied {
  public:
    // The cure ends the messages.
    explicit Occupied(const char* cure = "; tied weights are passed once, with the sum of their "
                                         "gradients; else pass np.array(a), a copy, for one of "
                                         "them")
        : cure_(cure) {}
    void add(PyObject* array, const Label& label);
    // Sorts, and throws ValueError if two of the buffers share memory.
    void finish();
    // Throws ValueError if the array shares memory with one of the buffers.
    void check(PyObject* array, const Label& label) const;
    // False is certain; true means: ask check().
    bool may_meet(const char* low, const char* high) const;

  private:
    struct Buffer {
        Extent extent;
        const char* highest; // of all buffers up to this one
        PyObject* array;
        const char* what;
        std::string path;
    };
    // Both of those from `first` to `last`, which lie among each other.
    bool are_apart_in_period(std::size_t first, std::size_t last) const;
    void check_pairs(std::size_t first, std::size_t last) const;

    std::vector<Buffer> buffers_;
    const char* cure_;
};

} // namespace thalweg

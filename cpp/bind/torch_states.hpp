// The states of a torch optimizer's params, in its own dict: found where they stood, made where
// there are none, and put there once a step with them is taken.
#pragma once
#include <cstddef>
#include <unordered_map>
#include <vector>

#include "torch_held.hpp"
#include "torch_leaf.hpp"

namespace thalweg {

class TorchStates {
  public:
    TorchStates(TorchRule rule, const Torch& torch);

    // A step begins; `dict` holds the optimizer's attributes.
    void begin(PyObject* optimizer, PyObject* dict, TorchHeld& held);
    // Looks at a param's: null, or why a step here cannot take them. `options` are its group's;
    // `is_new` is set if there are none yet.
    const char* look_at(TorchLeaf& leaf, PyObject* param, PyObject* options, bool& is_new);
    // The step is taken: what was new stays.
    void keep() const;

  private:
    PyObject* entries_of(PyObject* param, TorchLeaf& leaf);
    void find_positions();

    const TorchRule rule_;
    const Torch& torch_;
    // Of this step.
    PyObject* optimizer_ = nullptr;
    PyObject *given_ = nullptr, *states_ = nullptr; // the dict, and as it is at this moment
    TorchHeld* held_ = nullptr;
    struct Fresh {
        PyObject *param, *entries;
    };
    std::vector<Fresh> fresh_;
    std::unordered_map<PyObject*, Py_ssize_t> positions_;
    bool found_positions_ = false;
};

} // namespace thalweg

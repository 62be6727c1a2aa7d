// What a step keeps alive until it has ended.
#pragma once
#include <cstddef>
#include <vector>

#include "torch_library.hpp"

namespace thalweg {

class TorchHeld {
  public:
    TorchHeld() = default;
    ~TorchHeld() {
        for (PyObject* object : objects_) Py_DECREF(object);
    }
    TorchHeld(const TorchHeld&) = delete;
    TorchHeld& operator=(const TorchHeld&) = delete;

    void reserve(std::size_t count) { objects_.reserve(count); }
    PyObject* take(PyObject* object) { // a reference that was ours
        try {
            objects_.push_back(object);
        } catch (...) {
            Py_DECREF(object);
            throw;
        }
        return object;
    }
    PyObject* share(PyObject* object) { return take(Py_NewRef(object)); }
    // The memory of all tensors among them, for while the GIL is free.
    void hold_memory(const Torch& torch) {
        const std::size_t count = objects_.size();
        objects_.reserve(2 * count);
        for (std::size_t i = 0; i < count; ++i)
            if (torch.is_plain_tensor(objects_[i])) take(torch.alias_of(objects_[i]));
    }

  private:
    std::vector<PyObject*> objects_;
};

} // namespace thalweg

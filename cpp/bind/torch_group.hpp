// One of an optimizer's param_groups: its options as a step here reads them.
#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "judge.hpp"
#include "torch_library.hpp"

namespace thalweg {

enum class TorchRule { sgd, adagrad };

class TorchGroup {
  public:
    explicit TorchGroup(TorchRule rule) : rule_(rule) {}
    ~TorchGroup() { forget(); }
    TorchGroup(const TorchGroup&) = delete;
    TorchGroup& operator=(const TorchGroup&) = delete;
    TorchGroup(TorchGroup&&) = delete;
    TorchGroup& operator=(TorchGroup&&) = delete;

    // Reads the group's dict where it is not the one that was read last; ValueError or TypeError
    // for an option of ours that is none. `index` is the group's, for messages.
    void read(const Torch& torch, PyObject* dict, std::size_t index);

    PyObject* params() const { return params_; } // a list or tuple, borrowed from the dict
    Options options;                             // but for scale and clip
    Limits limits;                               // those of the whole step
    KernelIndex kernel = KernelIndex::sgd;
    bool has_state = false, fused = false;
    const char* refused = nullptr; // why a step here cannot take the group's arrays

  private:
    // What was read, as it stood in the dict: immutable values, held, so that another at the same
    // address is not taken for one of them.
    struct Entry {
        PyObject *key, *value;
        bool held;
    };
    bool is_as_read(PyObject* dict);
    bool take_entries(PyObject* dict);
    void forget();
    double number(const Torch& torch, PyObject* dict, const char* name, double otherwise);
    double limit(PyObject* dict, const char* name, std::size_t index) const;
    void read_sgd(const Torch& torch, PyObject* dict, std::size_t index);
    void read_adagrad(const Torch& torch, PyObject* dict, std::size_t index);

    TorchRule rule_;
    PyObject* params_ = nullptr;
    std::vector<Entry> entries_;
};

} // namespace thalweg

// One tensor of a step: where it lies now, and how it is laid out. Layouts are kept from step to
// step, addresses are not.
#pragma once
#include <cstddef>
#include <vector>

#include "step/places.hpp"
#include "step/traversal.hpp"
#include "torch_library.hpp"

namespace thalweg {

class TorchOperand {
  public:
    // What is to become of it.
    enum class Use { read, written };

    // Looks at the tensor: null, or why a step here cannot take it. `relaid` is set if its dtype,
    // shape or strides are not what they were.
    const char* look_at(const Torch& torch, PyObject* tensor, Use use, bool& relaid);

    // It lies where it lay when it was looked at, in this step.
    bool is_still(const Torch& torch) const {
        dlpack::Tensor t;
        return torch.borrow(tensor_, t) && is_alike(t) &&
               static_cast<char*>(t.data) + t.byte_offset == data_;
    }

    char* data() const { return data_; }
    Dtype dtype() const { return dtype_; }
    std::size_t size() const { return size_; }
    const std::vector<std::ptrdiff_t>& shape() const { return shape_; }
    const std::vector<std::ptrdiff_t>& strides() const { return strides_; } // in bytes
    Span span() const { return {data_, data_ + extent_}; }
    // No two of its elements lie in one place.
    bool is_injective() const { return injective_; }

  private:
    bool is_alike(const dlpack::Tensor& t) const;
    void lay_out(const dlpack::Tensor& t);

    PyObject* tensor_ = nullptr; // of this step
    char* data_ = nullptr;
    Dtype dtype_ = Dtype::float16;
    std::size_t size_ = 0;
    std::ptrdiff_t extent_ = 0; // bytes from the first element to the end of the last
    std::vector<std::ptrdiff_t> shape_, strides_;
    bool injective_ = false, dense_ = false;

    // Which tensor was found to be neither negated nor an inference tensor: by its object, its
    // memory and where torch keeps its shape. Only compared.
    const void *object_ = nullptr, *memory_ = nullptr, *place_ = nullptr;
};

} // namespace thalweg

#include "torch_operand.hpp"

#include <algorithm>
#include <numeric>

namespace thalweg {

const char* TorchOperand::look_at(const Torch& torch, PyObject* tensor, Use use, bool& relaid) {
    if (!torch.is_plain_tensor(tensor)) return "a subclass of torch.Tensor";
    dlpack::Tensor t;
    if (!torch.borrow(tensor, t)) return "not strided memory of the CPU";
    if (t.device.type != dlpack::cpu) return "not on the CPU";
    if (t.dtype.code != dlpack::ieee_float || (t.dtype.bits != 32 && t.dtype.bits != 64) ||
        t.dtype.lanes != 1)
        return "neither float32 nor float64";
    if (!is_alike(t)) {
        lay_out(t);
        relaid = true;
    }
    tensor_ = tensor;
    data_ = static_cast<char*>(t.data) + t.byte_offset;
    if (!t.data && size_ != 0) return "without memory";
    if (use == Use::written && !injective_) return "a tensor whose own elements overlap";
    // A lazily negated tensor is a view of a complex one, so not dense, or made by a private
    // function, and then a new object. What a step writes stays from step to step, but gradients
    // come anew, in places where others were.
    if (object_ != tensor || memory_ != t.data || place_ != t.shape ||
        (use == Use::read && !dense_)) {
        object_ = nullptr;
        if (torch.is_negated(tensor)) return "a lazily negated view";
        if (use == Use::written && torch.is_inference(tensor)) return "an inference tensor";
        object_ = tensor, memory_ = t.data, place_ = t.shape;
    }
    return nullptr;
}

bool TorchOperand::is_alike(const dlpack::Tensor& t) const {
    const auto ndim = static_cast<std::size_t>(t.ndim);
    const Dtype dtype = t.dtype.bits == 32 ? Dtype::float32 : Dtype::float64;
    if (dtype != dtype_ || ndim != shape_.size()) return false;
    const auto width = static_cast<std::ptrdiff_t>(thalweg::size_of(dtype));
    for (std::size_t i = 0; i < ndim; ++i)
        if (t.shape[i] != shape_[i] || t.strides[i] * width != strides_[i]) return false;
    return true;
}

void TorchOperand::lay_out(const dlpack::Tensor& t) {
    const auto ndim = static_cast<std::size_t>(t.ndim);
    dtype_ = Dtype::float16; // nothing is like it until this ends
    shape_.assign(t.shape, t.shape + ndim);
    strides_.assign(t.strides, t.strides + ndim);
    const Dtype dtype = t.dtype.bits == 32 ? Dtype::float32 : Dtype::float64;
    const auto width = static_cast<std::ptrdiff_t>(thalweg::size_of(dtype));
    size_ = 1;
    extent_ = width;
    for (std::size_t i = 0; i < ndim; ++i) {
        strides_[i] *= width;
        size_ *= static_cast<std::size_t>(shape_[i]);
        extent_ += (shape_[i] - 1) * strides_[i];
    }
    if (size_ == 0) extent_ = 0;
    // Enough, not necessary: each axis steps over all that the finer ones reach.
    std::vector<std::size_t> axes(ndim);
    std::iota(axes.begin(), axes.end(), std::size_t{0});
    std::sort(axes.begin(), axes.end(),
              [&](std::size_t a, std::size_t b) { return strides_[a] < strides_[b]; });
    injective_ = true;
    std::ptrdiff_t reach = width;
    for (const std::size_t i : axes) {
        if (shape_[i] <= 1) continue;
        injective_ = injective_ && strides_[i] >= reach;
        reach += (shape_[i] - 1) * strides_[i];
    }
    injective_ = injective_ || size_ == 0;
    dense_ = extent_ == static_cast<std::ptrdiff_t>(size_) * width && ndim != 0 &&
             strides_[axes.front()] == width;
    dtype_ = dtype;
}

} // namespace thalweg

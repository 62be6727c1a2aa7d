#include "torch_leaf.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "run.hpp"

namespace thalweg {

const char* TorchLeaf::look_at_grad(const Torch& torch, PyObject* grad) {
    if (const char* why = grad_.look_at(torch, grad, TorchOperand::Use::read, relaid_)) return why;
    if (grad_.dtype() != param_.dtype()) return "a gradient of another dtype";
    if (grad_.shape() != param_.shape()) return "a gradient of another shape";
    return nullptr;
}

const char* TorchLeaf::look_at_rows(const Torch& torch, PyObject* rows, PyObject* values) {
    if (const char* why = grad_.look_at(torch, values, TorchOperand::Use::read, relaid_))
        return why;
    dlpack::Tensor t;
    if (!torch.is_plain_tensor(rows) || !torch.borrow(rows, t) || t.device.type != dlpack::cpu ||
        t.dtype.code != dlpack::signed_integer || t.dtype.bits != 64 || t.ndim != 2 ||
        t.shape[0] != 1)
        return "a sparse gradient over more than one axis";
    const auto &shape = param_.shape(), &its = grad_.shape();
    if (grad_.dtype() != param_.dtype()) return "a gradient of another dtype";
    if (shape.empty() || its.size() != shape.size() || its[0] != t.shape[1] ||
        !std::equal(shape.begin() + 1, shape.end(), its.begin() + 1))
        return "a gradient of another shape";
    const auto width = static_cast<std::ptrdiff_t>(sizeof(std::int64_t));
    const char* const data = static_cast<const char*>(t.data) + t.byte_offset;
    rows_ = {data, t.strides[1] * width, true, static_cast<std::size_t>(t.shape[1])};
    rows_span_ =
        t.shape[1] == 0 ? Span{} : Span{data, data + (t.shape[1] - 1) * rows_.stride + width};
    sparse_ = true;
    return nullptr;
}

const char* TorchLeaf::look_at_state(const Torch& torch, PyObject* state) {
    if (const char* why = state_.look_at(torch, state, TorchOperand::Use::written, relaid_))
        return why;
    if (state_.dtype() != param_.dtype()) return "a state of another dtype";
    if (state_.shape() != param_.shape()) return "a state of another shape";
    return nullptr;
}

const char* TorchLeaf::look_at_count(const Torch& torch, PyObject* count) {
    bool relaid = false;
    if (const char* why = count_.look_at(torch, count, TorchOperand::Use::written, relaid))
        return why;
    if (count_.size() != 1) return "a step count that is no number";
    double t;
    if (count_.dtype() == Dtype::float32) {
        float narrow;
        std::memcpy(&narrow, count_.data(), sizeof narrow);
        t = narrow;
    } else {
        std::memcpy(&t, count_.data(), sizeof t);
    }
    constexpr double most = 9007199254740992; // 2^53
    if (!(t >= 0 && t < most) || std::floor(t) != t) return "a step count that is no whole number";
    t_ = static_cast<std::uint64_t>(t);
    counted_ = true;
    return nullptr;
}

void TorchLeaf::count_step() const {
    if (!counted_) return;
    const double next = static_cast<double>(t_) + 1;
    const auto narrow = static_cast<float>(next);
    if (count_.dtype() == Dtype::float32)
        std::memcpy(count_.data(), &narrow, sizeof narrow);
    else
        std::memcpy(count_.data(), &next, sizeof next);
}

void TorchLeaf::occupy(Places& places, bool has_state) const {
    places.add({param_.span(), has_state ? state_.span() : Span{}, grad_.span()});
    places.add({counted_ ? count_.span() : Span{}, Span{}, sparse_ ? rows_span_ : Span{}});
}

bool TorchLeaf::describe(Item& item, const Level& level, const TorchGroup& group, bool is_new) {
    const bool resized = item.size != param_.size();
    const bool replanned =
        relaid_ || sparse_ || item.sparse || level_ != &level || kernel_ != group.kernel;
    item.active = true;
    item.param = param_.data();
    item.grad = grad_.data();
    item.state = group.has_state ? state_.data() : nullptr;
    item.options = &group.options;
    // torch keeps no count of an SGD's steps: its first makes the buffer.
    item.t = counted_ ? t_ : is_new ? 0 : 1;
    if (replanned) plan(item, level, group);
    return resized;
}

void TorchLeaf::plan(Item& item, const Level& level, const TorchGroup& group) {
    relaid_ = true; // until this ends
    item.size = param_.size();
    item.dtype = item.grad_dtype = param_.dtype();
    item.sparse = sparse_;
    item.linear = false;
    set_kernel(item, level, level.kernels[static_cast<std::size_t>(group.kernel)]);
    const auto& shape = param_.shape();
    const auto& strides = param_.strides();
    const Traversal::Strides all{strides.data(), grad_.strides().data(),
                                 group.has_state ? state_.strides().data() : nullptr};
    const std::size_t width = size_of(item.dtype), ndim = shape.size();
    if (sparse_) {
        describe_rows(item, ndim, shape.data(), all);
        item.rows->numbers = rows_;
    } else {
        item.traversal.plan(ndim, shape.data(), all, static_cast<std::ptrdiff_t>(width),
                            static_cast<std::ptrdiff_t>(width));
        bool alike = true; // axes of one element may have any stride
        for (std::size_t i = 0; i < ndim; ++i)
            alike = alike && (shape[i] == 1 || strides[i] == grad_.strides()[i]);
        item.linear = alike && item.traversal.is_flat();
        sequence_axes(ndim, shape.data(), grad_.strides().data(), width, item.axes);
        item.linear_axes = item.axes;
    }
    level_ = &level;
    kernel_ = group.kernel;
    relaid_ = false;
}

} // namespace thalweg

#include "places.hpp"

#include <algorithm>

namespace thalweg {

void Places::begin(std::size_t count) {
    if (places_.size() != count) {
        known_ = false;
        places_.resize(count);
    }
    same_buffers_ = same_grads_ = known_;
    known_ = false; // until the places that come now have been looked at
    count_ = 0;
}

bool Places::are_apart() {
    known_ = same_buffers_ && same_grads_;
    if (known_) return true;
    if (!same_buffers_ || !sorted_) sorted_ = sort_buffers();
    known_ = sorted_ && std::none_of(places_.begin(), places_.end(),
                                     [this](const Place& at) { return meets_buffer(at.grad); });
    return known_;
}

bool Places::sort_buffers() {
    buffers_.clear();
    for (const Place& at : places_)
        for (const Span& span : {at.param, at.state})
            if (span.low != span.high) buffers_.push_back(span);
    std::sort(buffers_.begin(), buffers_.end(),
              [](const Span& a, const Span& b) { return a.low < b.low; });
    return std::adjacent_find(buffers_.begin(), buffers_.end(), [](const Span& a, const Span& b) {
               return a.meets(b);
           }) == buffers_.end();
}

bool Places::meets_buffer(const Span& grad) const {
    if (grad.low == grad.high) return false;
    const auto after = std::partition_point(buffers_.begin(), buffers_.end(),
                                            [&](const Span& b) { return b.high <= grad.low; });
    return after != buffers_.end() && after->meets(grad);
}

bool Places::are_apart_from(const Span& span) const {
    return std::none_of(places_.begin(), places_.end(), [&](const Place& at) {
        return at.param.meets(span) || at.state.meets(span) || at.grad.meets(span);
    });
}

} // namespace thalweg

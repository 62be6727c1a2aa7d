// Where the operands of a step lie, and whether what it writes is apart from all else. That is a
// matter of addresses alone, and in a loop most operands are where they were at the last step.
#pragma once
#include <cstddef>
#include <vector>

namespace thalweg {

// The bytes between two addresses: all of them, or those of elements `stride` bytes apart.
struct Span {
    const char *low = nullptr, *high = nullptr;
    std::ptrdiff_t stride = 0;
    bool operator==(const Span&) const = default;
    bool meets(const Span& other) const { return low < other.high && other.low < high; }
};

// Of the operands of one array; one that is not there is empty.
struct Place {
    Span param, state, grad;
};

class Places {
  public:
    void begin(std::size_t count);
    // As often as `count` says.
    void add(const Place& now) {
        Place& last = places_[count_++];
        same_buffers_ &= last.param == now.param && last.state == now.state;
        same_grads_ &= last.grad == now.grad;
        last = now;
    }
    // False: a param or a state may share memory with another operand. trust() says that they do
    // not, where a closer look has shown it.
    bool are_apart();
    void trust() { known_ = true; }
    // False: one of the operands lies there.
    bool are_apart_from(const Span& span) const;

  private:
    bool sort_buffers();
    bool meets_buffer(const Span& grad) const;

    std::vector<Place> places_;
    std::vector<Span> buffers_; // params and states, sorted
    std::size_t count_ = 0;
    bool known_ = false;  // those of the last step were apart
    bool sorted_ = false; // so are `buffers_`, between their ends
    bool same_buffers_ = false, same_grads_ = false;
};

} // namespace thalweg

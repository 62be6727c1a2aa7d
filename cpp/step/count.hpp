// A count that others may read while a step raises it: long ones do so without the GIL.
#pragma once
#include <atomic>
#include <cstdint>

namespace thalweg {

// Only one thread at a time raises it.
class Count {
  public:
    Count(std::uint64_t value = 0) : value_(value) {}
    Count(const Count& other) : value_(other) {}
    Count& operator=(const Count& other) { return *this = std::uint64_t{other}; }
    Count& operator=(std::uint64_t value) {
        value_.store(value, std::memory_order_relaxed);
        return *this;
    }
    operator std::uint64_t() const { return value_.load(std::memory_order_relaxed); }
    void operator+=(std::uint64_t more) { *this = *this + more; }

  private:
    std::atomic<std::uint64_t> value_;
};

} // namespace thalweg

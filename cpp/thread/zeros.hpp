// Zeros that take no memory until they are touched, where the system can: the state of a table of
// which few rows are ever stepped.
#pragma once
#include <cstddef>

namespace thalweg {

class Zeros {
  public:
    // They begin at a multiple of `alignment`, a power of two of at least a page; throws
    // std::bad_alloc.
    Zeros(std::size_t bytes, std::size_t alignment);
    ~Zeros();
    Zeros(const Zeros&) = delete;
    Zeros& operator=(const Zeros&) = delete;

    char* data() const { return data_; }
    // All of them will soon be touched: huge pages save page faults and TLB misses. Not before,
    // or a single row would take one.
    void expect_all() const;

  private:
    void* memory_;
    std::size_t length_; // of all that was asked for
    char* data_;
    std::size_t bytes_;
};

} // namespace thalweg

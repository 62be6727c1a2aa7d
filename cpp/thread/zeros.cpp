#include "zeros.hpp"

#include <cstdint>
#include <cstdlib>
#include <new>

#include "pages.hpp"

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#define THALWEG_HAS_MMAP 1
#endif

namespace thalweg {

Zeros::Zeros(std::size_t bytes, std::size_t alignment)
    : memory_(nullptr), length_(bytes + alignment), bytes_(bytes) {
#ifdef THALWEG_HAS_MMAP
    int flags = MAP_PRIVATE | MAP_ANON;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE; // may be more than there is memory
#endif
    memory_ = mmap(nullptr, length_, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory_ == MAP_FAILED) throw std::bad_alloc();
#else
    memory_ = std::calloc(1, length_);
    if (!memory_) throw std::bad_alloc();
#endif
    const std::size_t beyond = reinterpret_cast<std::uintptr_t>(memory_) % alignment;
    data_ = static_cast<char*>(memory_) + (beyond == 0 ? 0 : alignment - beyond);
}

Zeros::~Zeros() {
#ifdef THALWEG_HAS_MMAP
    munmap(memory_, length_);
#else
    std::free(memory_);
#endif
}

void Zeros::expect_all() const { use_huge_pages(data_, bytes_); }

} // namespace thalweg

#include "pages.hpp"

#include <cstdlib>
#include <new>

#ifdef _WIN32
#include <malloc.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace thalweg {

char* allocate_aligned(std::size_t bytes, std::size_t alignment) {
#ifdef _WIN32
    void* const memory = _aligned_malloc(bytes, alignment);
#else
    void* const memory = std::aligned_alloc(alignment, bytes);
#endif
    if (!memory) throw std::bad_alloc();
    return static_cast<char*>(memory);
}

void free_aligned(void* memory) {
#ifdef _WIN32
    _aligned_free(memory);
#else
    std::free(memory);
#endif
}

void use_huge_pages([[maybe_unused]] void* memory, [[maybe_unused]] std::size_t bytes) {
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
}

} // namespace thalweg

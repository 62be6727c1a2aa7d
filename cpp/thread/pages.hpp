// Aligned memory and its pages: the system's words for them.
#pragma once
#include <cstddef>

namespace thalweg {

// Begins at a multiple of `alignment`, a power of two of which `bytes` is a multiple; throws
// std::bad_alloc. Given back by free_aligned, and by nothing else.
char* allocate_aligned(std::size_t bytes, std::size_t alignment);
void free_aligned(void* memory);

// Huge pages save page faults and TLB misses, where there are any. From the start of a page.
void use_huge_pages(void* memory, std::size_t bytes);

} // namespace thalweg

// What fork() must know: it waits for the steps that run without the GIL, so that a child never
// sees a half-done one, and it counts, so that a child can tell what died with its parent's
// threads.
#pragma once
#include <cstdint>

namespace thalweg {

// How often this process has been forked on the way from the first one.
unsigned fork_generation();

// The calling thread's own, above 0. The system's numbers will not do: a child's new threads are
// given those of the threads that the fork left behind.
std::uint64_t thread_number();

// The number of the thread that the last fork took along.
std::uint64_t surviving_thread();

// A stretch in which arrays change and the GIL is not held; no fork happens within.
class Running {
  public:
    Running();
    ~Running();
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;
};

} // namespace thalweg

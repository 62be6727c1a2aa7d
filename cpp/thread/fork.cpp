#include "fork.hpp"

#include "pool.hpp"

#include <atomic>
#include <condition_variable>
#include <mutex>

#ifndef _WIN32
#include <pthread.h>
#endif

namespace thalweg {

namespace {

std::atomic<unsigned> generation = 0;
std::atomic<std::uint64_t> threads = 0, survivor = 0;

struct Steps {
    std::mutex mutex;
    std::condition_variable changed;
    int running = 0;
    int forking = 0; // keeps new steps out, or a loop of steps would starve the fork
};

// Never destroyed, for steps that run while the process exits; never reused by a child, where its
// mutex may be held by a thread that is no more.
Steps* steps = new Steps;

#ifndef _WIN32
void before_fork() {
    std::unique_lock lock(steps->mutex);
    ++steps->forking;
    steps->changed.wait(lock, [] { return steps->running == 0; });
    lock.release(); // held until after the fork
}

void in_parent() {
    --steps->forking;
    steps->mutex.unlock();
    steps->changed.notify_all();
}

void in_child() {
    steps = new Steps;
    abandon_workers();
    survivor = thread_number();
    ++generation;
}

const int registered = pthread_atfork(before_fork, in_parent, in_child);
#endif

} // namespace

unsigned fork_generation() { return generation.load(std::memory_order_relaxed); }

std::uint64_t thread_number() {
    thread_local std::uint64_t number = 0;
    if (number == 0) number = ++threads;
    return number;
}

std::uint64_t surviving_thread() { return survivor.load(std::memory_order_relaxed); }

Running::Running() {
    std::unique_lock lock(steps->mutex);
    steps->changed.wait(lock, [] { return steps->forking == 0; });
    ++steps->running;
}

Running::~Running() {
    const std::scoped_lock lock(steps->mutex);
    if (--steps->running == 0) steps->changed.notify_all();
}

} // namespace thalweg

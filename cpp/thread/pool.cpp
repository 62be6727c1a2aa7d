#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#ifndef _WIN32
#include <csignal>
#include <pthread.h>
#endif
#if defined(__SSE2__) || defined(_M_X64)
#include <immintrin.h>
#elif defined(_M_ARM64)
#include <intrin.h>
#endif

namespace thalweg {

namespace {

// How long a worker looks for the next step before it sleeps. Waking a sleeper takes 50 us and more
// on a virtual machine; the BLAS between two steps needs the core sooner than that.
constexpr std::chrono::microseconds idle_spin{20};

// How long the caller looks for the workers' last blocks to end before it sleeps: one block's time.
constexpr std::chrono::microseconds join_spin{100};

using Clock = std::chrono::steady_clock;

std::atomic<int> wanted = 1;

void relax() {
#if defined(__SSE2__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#elif defined(_M_ARM64)
    __yield();
#endif
}

template <class Predicate>
bool spin_until(const Predicate& done, std::chrono::microseconds at_most) {
    const auto end = Clock::now() + at_most;
    do {
        for (int i = 0; i < 64; ++i) {
            if (done()) return true;
            relax();
        }
    } while (Clock::now() < end);
    return done();
}

// Threads made in its scope take no signals: those are for the caller's.
class NoSignals {
#ifndef _WIN32
  public:
    NoSignals() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~NoSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

  private:
    sigset_t before_;
#endif
};

class Pool {
  public:
    bool grow(int count) {
        const std::scoped_lock lock(mutex_);
        [[maybe_unused]] const NoSignals no_signals;
        try {
            for (; workers_ < count && !refused_; ++workers_)
                std::thread([this] { serve(); }).detach();
        } catch (const std::system_error&) {
            refused_ = true;
            return false;
        }
        return true;
    }
    void forgive() {
        const std::scoped_lock lock(mutex_);
        refused_ = false;
    }

    void run(int helpers, void (*work)(void*), void* context, bool worth_waking) {
        const std::unique_lock one_step(step_, std::try_to_lock);
        if (!one_step) return work(context); // another step has the workers
        if (worth_waking || Clock::now() - ended_ < idle_spin)
            run_with(helpers, work, context);
        else
            work(context);
        ended_ = Clock::now();
    }

  private:
    void run_with(int helpers, void (*work)(void*), void* context) {
        {
            const std::scoped_lock lock(mutex_);
            work_ = work;
            context_ = context;
            seats_ = helpers = std::min(helpers, workers_);
            job_.fetch_add(1, std::memory_order_release);
        }
        for (int i = 0; i < helpers; ++i) opened_.notify_one();
        work(context);
        {
            const std::scoped_lock lock(mutex_);
            seats_ = 0;
        }
        const auto all_left = [this] { return busy_.load(std::memory_order_acquire) == 0; };
        if (!spin_until(all_left, join_spin)) {
            std::unique_lock lock(mutex_);
            left_.wait(lock, all_left);
        }
    }

    void serve() {
        unsigned seen = job_.load(std::memory_order_acquire);
        const auto has_job = [&] { return job_.load(std::memory_order_acquire) != seen; };
        while (true) {
            spin_until(has_job, idle_spin);
            std::unique_lock lock(mutex_);
            opened_.wait(lock, has_job);
            seen = job_.load(std::memory_order_acquire);
            if (seats_ == 0) continue;
            --seats_;
            busy_.fetch_add(1, std::memory_order_relaxed);
            const auto work = work_;
            void* const context = context_;
            lock.unlock();
            work(context);
            lock.lock();
            if (busy_.fetch_sub(1, std::memory_order_release) == 1) left_.notify_one();
        }
    }

    std::mutex step_, mutex_;
    Clock::time_point ended_; // the last step
    std::condition_variable opened_, left_;
    std::atomic<unsigned> job_ = 0;
    std::atomic<int> busy_ = 0;
    int workers_ = 0, seats_ = 0;
    bool refused_ = false;
    void (*work_)(void*) = nullptr;
    void* context_ = nullptr;
};

// Never destroyed: the workers are in it until the process ends.
Pool* pool = new Pool;

} // namespace

int get_num_threads() { return wanted.load(std::memory_order_relaxed); }

void set_num_threads(int count) {
    wanted.store(count, std::memory_order_relaxed);
    pool->forgive();
}

bool make_workers(int threads) { return pool->grow(threads - 1); }

void abandon_workers() { pool = new Pool; }

void run_on(int threads, void (*work)(void*), void* context, bool worth_waking) {
    pool->run(threads - 1, work, context, worth_waking);
}

} // namespace thalweg

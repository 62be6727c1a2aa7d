// One step at a time: a second thread waits for its turn, a step inside a step is refused.
#pragma once
#include <pybind11/pybind11.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "../fork.hpp"
#include "gil.hpp"

namespace thalweg {

namespace py = pybind11;

class Gate {
  public:
    // Both with the GIL held. Nobody holds the mutex while waiting for the GIL.
    void enter() {
        const unsigned long me = PyThread_get_thread_ident();
        if (generation_ != fork_generation()) forget_parent();
        while (owner_ != nobody) {
            if (owner_ == me) {
                PyErr_SetString(PyExc_RuntimeError,
                                "step: called from within a step of the same optimizer, by a "
                                "schedule or by a mapping of gradients; step after it has ended");
                throw py::error_already_set();
            }
            ++waiting_;
            wait();
            --waiting_;
        }
        owner_ = me;
    }
    void leave() {
        if (waiting_ == 0) {
            owner_ = nobody;
            return;
        }
        {
            const std::scoped_lock lock(sync_->mutex);
            owner_ = nobody;
        }
        sync_->left.notify_all();
    }

  private:
    struct Sync {
        std::mutex mutex;
        std::condition_variable left;
    };
    static constexpr unsigned long nobody = 0;

    void wait() {
        const WithoutGil without_gil;
        std::unique_lock lock(sync_->mutex);
        sync_->left.wait(lock, [this] { return owner_ == nobody; });
    }
    // In a forked child: the threads that stepped or waited are not there, and their mutex may be
    // locked for ever.
    void forget_parent() {
        static_cast<void>(sync_.release());
        sync_ = std::make_unique<Sync>();
        generation_ = fork_generation();
        waiting_ = 0;
        if (owner_ != PyThread_get_thread_ident()) owner_ = nobody;
    }

    std::atomic<unsigned long> owner_ = nobody;
    int waiting_ = 0;
    unsigned generation_ = fork_generation();
    std::unique_ptr<Sync> sync_ = std::make_unique<Sync>();
};

class Turn {
  public:
    explicit Turn(Gate& gate) : gate_(gate) { gate_.enter(); }
    ~Turn() { gate_.leave(); }
    Turn(const Turn&) = delete;
    Turn& operator=(const Turn&) = delete;

  private:
    Gate& gate_;
};

} // namespace thalweg

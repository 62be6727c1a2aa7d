// One step at a time: a second thread waits for its turn, a step inside a step is refused.
#pragma once
#include <pybind11/pybind11.h>

#include <atomic>
#include <condition_variable>
#include <mutex>

#include "gil.hpp"

namespace thalweg {

namespace py = pybind11;

class Gate {
  public:
    // Both with the GIL held. Nobody holds the mutex while waiting for the GIL.
    void enter() {
        const unsigned long me = PyThread_get_thread_ident();
        while (owner_ != nobody) {
            if (owner_ == me) {
                PyErr_SetString(PyExc_RuntimeError,
                                "step: called from within a step of the same optimizer, by a "
                                "schedule or by a mapping of gradients; step after it has ended");
                throw py::error_already_set();
            }
            ++waiting_;
            {
                const WithoutGil without_gil;
                std::unique_lock lock(mutex_);
                left_.wait(lock, [this] { return owner_ == nobody; });
            }
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
            const std::scoped_lock lock(mutex_);
            owner_ = nobody;
        }
        left_.notify_all();
    }

  private:
    static constexpr unsigned long nobody = 0;
    std::atomic<unsigned long> owner_ = nobody;
    int waiting_ = 0;
    std::mutex mutex_;
    std::condition_variable left_;
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

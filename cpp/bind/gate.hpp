// One step at a time: a second thread waits for its turn, a step inside a step is refused.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>

#include "gil.hpp"
#include "thread/fork.hpp"

namespace thalweg {

namespace py = pybind11;

class Gate {
  public:
    // Both with the GIL held, or alone with the object the gate is of. Nobody holds the mutex while
    // waiting for the GIL. Turns are in the order of arrival: a loop of long steps comes back
    // before a woken thread has the GIL, and would keep it out for ever.
    void enter() {
        if (generation_ != fork_generation()) forget_parent();
        const std::uint64_t me = thread_number();
        if (owner_ == me) {
            PyErr_SetString(PyExc_RuntimeError,
                            "step: called from within a step of the same optimizer, by a "
                            "schedule or by a mapping of gradients; step after it has ended");
            throw py::error_already_set();
        }
        if (arrived_ == left_) {
            ++arrived_;
        } else {
            Tickets mine{arrived_}; // made before it counts: giving it up takes no memory
            ++arrived_;
            if (!wait(mine)) return enter(); // in a child: the line is not there
        }
        owner_ = me;
    }
    void leave() {
        if (generation_ != fork_generation()) forget_parent();
        owner_ = nobody;
        if (arrived_ == left_ + 1) { // nobody waits
            ++left_;
            return;
        }
        {
            const std::scoped_lock lock(sync_->mutex);
            do ++left_;
            while (gone_.erase(left_) != 0);
        }
        sync_->changed.notify_all();
    }

    bool is_mine() const { return generation_ == fork_generation() && owner_ == thread_number(); }

  private:
    struct Sync {
        std::mutex mutex;
        std::condition_variable changed;
    };
    using Tickets = std::set<std::uint64_t>;
    static constexpr std::uint64_t nobody = 0;

    // Signals are looked at meanwhile: two schedules that step each other's optimizers would wait
    // for ever. False: this is a forked child, made by the handler of one.
    bool wait(Tickets& mine) {
        const std::uint64_t ticket = *mine.begin();
        constexpr std::chrono::milliseconds deaf{50};
        while (true) {
            {
                const WithoutGil without_gil;
                std::unique_lock lock(sync_->mutex);
                if (sync_->changed.wait_for(lock, deaf, [&] { return left_ == ticket; }))
                    return true;
            }
            const bool interrupted = PyErr_CheckSignals() != 0;
            const bool in_child = generation_ != fork_generation();
            if (interrupted && !in_child) give_up(mine);
            if (interrupted) throw py::error_already_set();
            if (in_child) return false;
        }
    }
    void give_up(Tickets& mine) {
        if (mine.contains(left_)) return leave(); // its turn has come meanwhile
        gone_.merge(mine);
    }
    // In a forked child: the threads that stepped or waited are not there, but for the one that
    // forked, and their mutex may be locked for ever.
    void forget_parent() {
        static_cast<void>(sync_.release());
        sync_ = std::make_unique<Sync>();
        generation_ = fork_generation();
        if (owner_ != surviving_thread()) owner_ = nobody;
        left_ = 0;
        gone_.clear();
        arrived_ = owner_ == nobody ? 0 : 1;
    }

    std::uint64_t owner_ = nobody;
    std::uint64_t arrived_ = 0; // the ticket of the next to come
    std::uint64_t left_ = 0;    // the ticket of whose turn it is
    Tickets gone_;              // of those who were interrupted while they waited
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

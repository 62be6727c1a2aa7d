// The GIL let go for a scope.
#pragma once
#include <pybind11/pybind11.h>

#include <chrono>
#include <thread>

namespace thalweg {

// Unlike pybind11's own, it survives a daemon thread at the end of the interpreter: there CPython
// before 3.14 answers with pthread_exit, whose unwinding through a destructor would abort the
// process. Such a thread sleeps instead, as from 3.14 on.
class WithoutGil {
  public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() {
        try {
            PyEval_RestoreThread(state_);
        } catch (...) {
            for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

  private:
    PyThreadState* state_;
};

} // namespace thalweg

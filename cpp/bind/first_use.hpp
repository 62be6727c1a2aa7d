// What is made when it is first asked for, and kept until the process ends. Never by a static
// inside a function: its guard would be held while an import lets the GIL go, and waited for by a
// thread that has it, or that the interpreter waits for to stop.
#pragma once
#include <pybind11/pybind11.h>

#include <atomic>

namespace thalweg {

namespace py = pybind11;

// Of two threads that come first one is heard; what the other made is not released either.
template <class T, class Make> T* first_made(std::atomic<T*>& kept, const Make& make) {
    if (T* const there = kept.load(std::memory_order_acquire)) return there;
    T* const made = make();
    T* there = nullptr;
    return kept.compare_exchange_strong(there, made, std::memory_order_acq_rel) ? made : there;
}

// An attribute of a module.
class Imported {
  public:
    constexpr Imported(const char* module, const char* name) : module_(module), name_(name) {}
    py::handle get() {
        return first_made(object_, [this] {
            return py::object(py::module_::import(module_).attr(name_)).release().ptr();
        });
    }

  private:
    const char *module_, *name_;
    std::atomic<PyObject*> object_ = nullptr;
};

// An interned string.
class Word {
  public:
    constexpr explicit Word(const char* text) : text_(text) {}
    PyObject* get() {
        return first_made(object_, [this] {
            PyObject* const made = PyUnicode_InternFromString(text_);
            if (!made) throw py::error_already_set();
            return made;
        });
    }

  private:
    const char* text_;
    std::atomic<PyObject*> object_ = nullptr;
};

} // namespace thalweg

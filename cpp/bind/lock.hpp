// What stands in for the GIL where there is none. The binding is written for one thread at a time
// in an object, up to the next call that may let others run. So is a critical section: CPython lets
// go of it wherever it would let go of the GIL, so that none is waited for in a circle. With the
// GIL all of this is nothing. docs/free_threads.md lists what is kept safe by what.
#pragma once
#include <pybind11/critical_section.h>
#include <pybind11/pybind11.h>

#include <utility>

namespace thalweg {

namespace py = pybind11;

// In a scope, no other thread is in one of the same lock or Python object.
using Alone = py::scoped_critical_section;

class Lock {
  public:
    operator py::handle() const { return object_; }

  private:
#ifdef Py_GIL_DISABLED
    py::object object_ = py::reinterpret_steal<py::object>(
        PyObject_CallNoArgs(reinterpret_cast<PyObject*>(&PyBaseObject_Type)));
#else
    py::handle object_;
#endif
};

// A method as Python calls it: alone in its object.
template <class Object, class Result, class... Args> auto alone(Result (Object::*method)(Args...)) {
    return [method](Object& self, Args... args) -> Result {
        const Alone alone(self.lock());
        return (self.*method)(std::forward<Args>(args)...);
    };
}
template <class Object, class Result, class... Args>
auto alone(Result (Object::*method)(Args...) const) {
    return [method](const Object& self, Args... args) -> Result {
        const Alone alone(self.lock());
        return (self.*method)(std::forward<Args>(args)...);
    };
}

} // namespace thalweg

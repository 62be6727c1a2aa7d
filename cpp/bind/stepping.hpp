// What pybind11's classes that step share: the method step, how an object is made, and what the
// garbage collector sees of it.
#pragma once
#include <pybind11/pybind11.h>

#include <new>
#include <string>

#include "first_use.hpp"
#include "guarded.hpp"
#include "instance.hpp"
#include "lock.hpp"

namespace thalweg {

namespace py = pybind11;

inline bool is_true(PyObject* value) {
    const int truth = PyObject_IsTrue(value);
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}

inline constinit Word step_arguments[] = {Word("grads"), Word("scale"), Word("partial")};

template <class Stepped>
bool step(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    PyObject* values[] = {nullptr, nullptr, nullptr};
    if (count > 1)
        throw py::type_error("step: expected at most 1 positional argument, received " +
                             std::to_string(count) + "; scale and partial go by name");
    if (count == 1) values[0] = args[0];
    const Py_ssize_t named = keywords ? PyTuple_GET_SIZE(keywords) : 0;
    for (Py_ssize_t i = 0; i < named; ++i) {
        PyObject* name = PyTuple_GET_ITEM(keywords, i);
        std::size_t k = 0;
        while (k < 3 && PyUnicode_Compare(step_arguments[k].get(), name) != 0) ++k;
        if (k == 3)
            throw py::type_error("step: expected the arguments grads, scale and partial, "
                                 "received " +
                                 std::string(py::repr(name)));
        if (values[k]) throw py::type_error("step: received grads twice");
        values[k] = args[count + i];
    }
    auto& stepped = instance_of<Stepped>(self);
    const bool partial = values[2] && is_true(values[2]);
    const Alone alone(stepped.lock());
    return stepped.step(values[0], values[1], partial);
}

// A method descriptor of its own instead of a bound function: pybind11's call costs as much as the
// step of a small model.
template <class Stepped>
PyObject* step_method(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    return guarded(
        [&] { return Py_NewRef(step<Stepped>(self, args, count, keywords) ? Py_True : Py_False); });
}

// As pybind11's own, which answers a lack of memory with a crash.
inline PyObject* make(PyTypeObject* type, PyObject*, PyObject*) {
    PyObject* self = type->tp_alloc(type, 0);
    if (!self) return nullptr;
    try {
        reinterpret_cast<py::detail::instance*>(self)->allocate_layout();
        return self;
    } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    PyObject_GC_UnTrack(self);
    type->tp_free(self);
    Py_DECREF(type);
    return nullptr;
}

template <class Held> int traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    if (!py::detail::is_holder_constructed(self)) return 0;
    return instance_of<Held>(self).traverse(visit, arg);
}

template <class Held> int clear(PyObject* self) {
    if (py::detail::is_holder_constructed(self)) instance_of<Held>(self).clear();
    return 0;
}

// `set_attribute` is null for Python's own.
template <class Held> py::custom_type_setup collected(setattrofunc set_attribute = nullptr) {
    return py::custom_type_setup([set_attribute](PyHeapTypeObject* heap_type) {
        auto* type = &heap_type->ht_type;
        type->tp_flags |= Py_TPFLAGS_HAVE_GC;
        type->tp_new = make;
        type->tp_traverse = traverse<Held>;
        type->tp_clear = clear<Held>;
        if (set_attribute) type->tp_setattro = set_attribute;
    });
}

// Of a property: a limit of this name.
template <class Stepped> auto limit(const char* name) {
    return [name](const Stepped& self) {
        const Alone alone(self.lock());
        return self.limit(name);
    };
}
template <class Stepped> auto set_limit(const char* name) {
    return [name](Stepped& self, const py::object& value) {
        const Alone alone(self.lock());
        self.set_limit(name, value);
    };
}

// Gives what was made to the object; `what` is how messages call it.
template <class Held>
void initialise(py::detail::value_and_holder& self, Held* made, const char* what) {
    // Code of the caller's that ran meanwhile, or another thread, may have done the same.
    const Alone alone(reinterpret_cast<PyObject*>(self.inst));
    if (self.value_ptr()) {
        delete made;
        throw py::type_error(std::string("the ") + what + " was initialised twice");
    }
    self.value_ptr() = made;
    // Here and not behind us, where pybind11 catches nothing.
    try {
        self.type->init_instance(self.inst, nullptr);
    } catch (...) {
        self.value_ptr() = nullptr;
        delete made;
        throw;
    }
}

} // namespace thalweg

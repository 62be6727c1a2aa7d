// What is asked of torch, without its headers: DLPack's C exchange API, and a few descriptors and
// functions of its Python face that are called straight from here.
#pragma once
#include <pybind11/pybind11.h>

#include <cstdint>

#include "dlpack.hpp"
#include "step/count.hpp"

namespace thalweg {

namespace py = pybind11;

class Torch {
  public:
    // Imports torch when first asked; ImportError if it does not have what is needed.
    static const Torch& get();

    // A subclass may mean anything.
    bool is_plain_tensor(PyObject* object) const {
        return Py_TYPE(object) == tensor_ || Py_TYPE(object) == parameter_;
    }
    bool is_tensor(PyObject* object) const {
        return PyType_IsSubtype(Py_TYPE(object), tensor_) != 0;
    }
    // False: it has no memory that can be seen; no error is set. The param must be a plain tensor.
    bool borrow(PyObject* tensor, dlpack::Tensor& out) const {
        if (api_->borrow(tensor, &out) == 0) return true;
        PyErr_Clear();
        return false;
    }
    // A new reference to an alias, which keeps the memory whatever becomes of the tensor; DLPack's
    // own export keeps the tensor only, whose memory may be exchanged.
    PyObject* alias_of(PyObject* tensor) const {
        PyObject* alias = data_->get(tensor, data_->closure);
        if (!alias) throw py::error_already_set();
        return alias;
    }
    // A new reference: a tensor or None.
    PyObject* grad_of(PyObject* param) const {
        PyObject* grad = grad_->get(param, grad_->closure);
        if (!grad) throw py::error_already_set();
        return grad;
    }
    void drop_grad(PyObject* param) const {
        if (grad_->set(param, Py_None, grad_->closure) != 0) throw py::error_already_set();
    }
    // Of a view that torch has not carried out yet, and of a tensor that no step may change.
    bool is_negated(PyObject* tensor) const { return is_true(is_neg_, tensor); }
    bool is_inference(PyObject* tensor) const { return is_true(is_inference_, tensor); }
    // Autograd then knows that a saved tensor is not what it was.
    void raise_versions(PyObject* tensors) const {
        if (PyObject* done = PyObject_CallOneArg(increment_version_, tensors))
            Py_DECREF(done);
        else
            throw py::error_already_set();
    }

    // Somebody wants to see the step: hooks of all optimizers, or the profiler.
    bool is_watched() const {
        return PyDict_GET_SIZE(pre_hooks_) != 0 || PyDict_GET_SIZE(post_hooks_) != 0 ||
               PyDict_GetItem(profiler_, profiling_) != Py_False;
    }
    // A mode, as that of fake tensors, stands between torch's functions and their work.
    bool is_in_mode() const {
        PyObject* const depth = PyObject_CallNoArgs(modes_);
        if (!depth) throw py::error_already_set();
        const bool any = PyLong_AsLong(depth) != 0;
        Py_DECREF(depth);
        return any;
    }

    // How often something was called that may have let the GIL go, for another thread to change
    // what has been looked at.
    std::uint64_t calls() const { return calls_; }
    void note_call() const { calls_ += 1; }

  private:
    Torch();
    bool is_true(PyObject* method, PyObject* tensor) const;

    // Never released.
    PyTypeObject *tensor_, *parameter_;
    const dlpack::ExchangeApi* api_;
    const PyGetSetDef *grad_, *data_;
    PyObject *is_neg_, *is_inference_, *increment_version_, *modes_;
    mutable Count calls_ = 0;
    PyObject *pre_hooks_, *post_hooks_, *profiler_, *profiling_;
};

} // namespace thalweg

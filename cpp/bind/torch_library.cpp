#include "torch_library.hpp"

#include <atomic>
#include <string>

#include "first_use.hpp"

namespace thalweg {

namespace {

PyObject* kept(py::object object) { return object.release().ptr(); }

[[noreturn]] void refuse(const std::string& what) {
    throw py::import_error("thalweg.torch: expected " + what +
                           " as in torch 2.13, received torch " +
                           std::string(py::str(py::module_::import("torch").attr("__version__"))) +
                           "; install torch>=2.13");
}

} // namespace

const Torch& Torch::get() {
    static constinit std::atomic<const Torch*> torch = nullptr;
    return *first_made(torch, [] { return new const Torch; });
}

Torch::Torch() {
    const py::module_ torch = py::module_::import("torch");
    const py::module_ c = py::module_::import("torch._C");
    const py::module_ optimizer = py::module_::import("torch.optim.optimizer");
    const py::object tensor = torch.attr("Tensor");
    if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) refuse("DLPack's C exchange API");
    const py::object capsule = tensor.attr("__dlpack_c_exchange_api__");
    api_ = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), dlpack::capsule_name));
    if (!api_) throw py::error_already_set();
    while (api_ && api_->version.major != dlpack::major_version) api_ = api_->previous;
    if (!api_ || !api_->borrow) refuse("version 1 of DLPack's C exchange API");
    const py::object base = c.attr("TensorBase");
    const auto property = [&](const char* name) {
        const py::object found = base.attr("__dict__")[name];
        if (Py_TYPE(found.ptr()) != &PyGetSetDescr_Type) refuse(std::string("Tensor.") + name);
        return reinterpret_cast<PyGetSetDescrObject*>(kept(found))->d_getset;
    };
    grad_ = property("grad");
    data_ = property("data");
    tensor_ = reinterpret_cast<PyTypeObject*>(kept(tensor));
    parameter_ = reinterpret_cast<PyTypeObject*>(kept(torch.attr("nn").attr("Parameter")));
    is_neg_ = kept(base.attr("is_neg"));
    is_inference_ = kept(base.attr("is_inference"));
    increment_version_ = kept(c.attr("_increment_version"));
    modes_ = kept(c.attr("_len_torch_dispatch_stack"));
    pre_hooks_ = kept(optimizer.attr("_global_optimizer_pre_hooks"));
    post_hooks_ = kept(optimizer.attr("_global_optimizer_post_hooks"));
    profiler_ = kept(py::module_::import("torch.autograd.profiler").attr("__dict__"));
    profiling_ = PyUnicode_InternFromString("_is_profiler_enabled");
}

bool Torch::is_true(PyObject* method, PyObject* tensor) const {
    note_call();
    PyObject* const answer = PyObject_CallOneArg(method, tensor);
    if (!answer) throw py::error_already_set();
    Py_DECREF(answer);
    return answer == Py_True;
}

} // namespace thalweg

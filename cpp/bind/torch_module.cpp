#include "guarded.hpp"
#include "instance.hpp"
#include "torch_stepper.hpp"

namespace thalweg {

namespace {

// Method descriptors of their own, as the optimizers' step: pybind11's call costs as much as the
// step of a small model.
PyObject* step(PyObject* self, PyObject* optimizer) {
    return guarded([&] {
        auto& stepper = instance_of<TorchStepper>(self);
        const Alone alone(stepper.lock());
        return stepper.step(optimizer, true, nullptr).release().ptr();
    });
}

PyObject* zero_grad(PyObject* self, PyObject* optimizer) {
    return guarded([&] {
        return Py_NewRef(instance_of<TorchStepper>(self).zero_grad(optimizer) ? Py_True : Py_False);
    });
}

PyMethodDef methods[] = {
    {"step", &step, METH_O,
     "step($self, optimizer, /)\n--\n\nTrue: done. None: hooks or the profiler want to see the "
     "step. Else a list of (group, index, why) for torch's own code; nothing has changed then."},
    {"zero_grad", &zero_grad, METH_O,
     "zero_grad($self, optimizer, /)\n--\n\nLet all gradients go; False if the profiler wants to "
     "see it."}};

} // namespace

void define_torch(py::module_& m) {
    py::class_<TorchStepper> stepper(m, "TorchStepper", "What steps a torch optimizer's params.");
    stepper
        .def(py::init([](const std::string& rule) { return ::new TorchStepper(rule); }),
             py::arg("rule"))
        .def(
            "step_rest",
            [](TorchStepper& self, const py::object& optimizer, const py::set& left_out) {
                const Alone alone(self.lock());
                return self.step(optimizer.ptr(), false, left_out.ptr());
            },
            py::arg("optimizer"), py::arg("left_out"))
        .def(
            "explain",
            [](TorchStepper& self, const py::object& optimizer) {
                const Alone alone(self.lock());
                return self.explain(optimizer.ptr());
            },
            py::arg("optimizer"))
        .def(
            "check",
            [](TorchStepper& self, const py::object& optimizer) {
                const Alone alone(self.lock());
                self.check(optimizer.ptr());
            },
            py::arg("optimizer"))
        .def_property_readonly("skipped_steps", alone(&TorchStepper::skipped_steps))
        .def_property_readonly("grad_norm", alone(&TorchStepper::grad_norm));
    for (PyMethodDef& method : methods)
        stepper.attr(method.ml_name) = py::reinterpret_steal<py::object>(
            PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(stepper.ptr()), &method));
}

} // namespace thalweg

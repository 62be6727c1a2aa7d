#include "joint.hpp"
#include "stepping.hpp"

namespace thalweg {

namespace {

PyMethodDef step_definition = {
    "step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step_method<Joint>)),
    METH_FASTCALL | METH_KEYWORDS,
    R"(step($self, grads=..., *, scale=1.0, partial=False)
--

Step all optimizers in one call; all of them or, on an error, none.

grads: a mapping with the gradients of each optimizer under its name; None in place of one leaves
    that optimizer out: it takes no step. Without it the buffers that all were bound to are read.
scale: every gradient is multiplied by it first.
partial: accept mappings in which keys are missing, of optimizers or of arrays.

Returns True, or False where on_nonfinite="skip", of the joint or of an optimizer, left out
something. Raises what the optimizers' own step raises, with the optimizer's name before the array's;
nothing has changed then.)"};

} // namespace

void define_joint(py::module_& m) {
    py::class_<Joint> joint(m, "Joint", collected<Joint>(), "The native base of thalweg.Joint.");
    joint
        .def(
            "__init__",
            [](py::detail::value_and_holder& self, const py::dict& optimizers) {
                initialise(self, ::new Joint(optimizers), "Joint");
            },
            py::detail::is_new_style_constructor(), py::arg("optimizers"))
        .def_property_readonly("skipped_steps", alone(&Joint::skipped_steps),
                               "Steps that the joint left out because of a non-finite gradient.")
        .def_property_readonly("grad_norm", alone(&Joint::grad_norm),
                               "The norm over all of the last step taken with max_norm; None "
                               "before. One running sum, optimizers in the order given.")
        .def_property("max_norm", limit<Joint>("max_norm"), set_limit<Joint>("max_norm"),
                      "The norm over all that gradients are scaled down to, or None; with math.inf "
                      "it is measured only.")
        .def_property("norm_eps", limit<Joint>("norm_eps"), set_limit<Joint>("norm_eps"),
                      "What is added to the norm that max_norm is divided by.")
        .def_property("on_nonfinite", alone(&Joint::on_nonfinite), alone(&Joint::set_on_nonfinite),
                      "propagate, skip or raise.")
        .def("_enter", alone(&Joint::enter))
        .def("_leave", alone(&Joint::leave))
        .def("_let_go", alone(&Joint::clear))
        .def("_set_counters", alone(&Joint::set_counters), py::arg("skipped_steps"),
             py::arg("grad_norm"));
    joint.attr("step") = py::reinterpret_steal<py::object>(
        PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(joint.ptr()), &step_definition));
}

} // namespace thalweg

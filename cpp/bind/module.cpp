// The module thalweg._core: what Python sees of the core.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>

#include "apply.hpp"
#include "first_use.hpp"
#include "functional.hpp"
#include "held.hpp"
#include "joint.hpp"
#include "lock.hpp"
#include "optimizer.hpp"
#include "rowgrad.hpp"
#include "slices.hpp"
#include "stepping.hpp"
#include "thread/pool.hpp"
#include "torch_stepper.hpp"

namespace thalweg {

namespace {

const Level& level_or_default(const std::string& name) {
    return name.empty() ? level_in_use() : find_level(name);
}

std::vector<std::string> names_of(const std::vector<const Level*>& levels) {
    std::vector<std::string> names;
    for (const Level* level : levels) names.emplace_back(level->name);
    return names;
}

PyMethodDef step_definition = {
    "step", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&step_method<Optimizer>)),
    METH_FASTCALL | METH_KEYWORDS,
    R"(step($self, grads=..., *, scale=1.0, partial=False)
--

Update every param in place from its gradient; all of them or, on an error, none.

grads: gradients in the structure of the params, float16, float32 or float64, each in its param's
    shape; None in place of one skips that array. Without it the buffers bound by grads=... are read.
scale: every gradient is multiplied by it first (1/loss_scale, 1/batch).
partial: accept mappings in which keys are missing; their arrays are skipped.

Returns True, or False for a step skipped by on_nonfinite="skip". Raises TypeError or ValueError for
gradients that do not fit, RuntimeError if a param changed its memory since the optimizer was made,
FloatingPointError with on_nonfinite="raise"; nothing has changed then.)"};

// A descriptor of its own for the same reason.
PyObject* get_lr(PyObject* self, void*) {
    return guarded([&] {
        const auto& optimizer = instance_of<Optimizer>(self);
        const Alone alone(optimizer.lock());
        return optimizer.lr().release().ptr();
    });
}

int set_lr(PyObject* self, PyObject* value, void*) {
    if (!value) {
        PyErr_SetString(PyExc_AttributeError, "lr: an option cannot be deleted; assign a number");
        return -1;
    }
    const auto set = [&] {
        auto& optimizer = instance_of<Optimizer>(self);
        const Alone alone(optimizer.lock());
        optimizer.set_lr(value);
        return Py_None;
    };
    return guarded(set) ? 0 : -1;
}

PyGetSetDef lr_definition = {
    "lr", &get_lr, &set_lr, "The learning rate of all groups; assigning sets it for all.", nullptr};

constinit Word lr("lr"), defaults("_defaults"), refuse("_refuse_attribute");

// Refuses the options that belong to a group, and names that are nothing's. In Python it would cost
// as much as ten steps.
void check_attribute(PyObject* self, PyObject* name) {
    if (name == lr.get() || !PyUnicode_Check(name)) return;
    const auto own = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(self, nullptr));
    if (!own) throw py::error_already_set();
    const py::object options = item_of_dict(own.ptr(), defaults.get());
    const int is_option =
        options && PyDict_Check(options.ptr()) ? PyDict_Contains(options.ptr(), name) : 0;
    if (is_option < 0) throw py::error_already_set();
    if (is_option && PyUnicode_Compare(name, lr.get()) != 0) {
        PyErr_Format(PyExc_AttributeError,
                     "%U: an option belongs to a group; assign opt.param_groups[i][%R]", name,
                     name);
        throw py::error_already_set();
    }
    if (!is_option && PyUnicode_GET_LENGTH(name) != 0 && PyUnicode_READ_CHAR(name, 0) != '_' &&
        PyObject_HasAttr(reinterpret_cast<PyObject*>(Py_TYPE(self)), name) == 0) {
        PyObject* const none = PyObject_CallMethodOneArg(self, refuse.get(), name);
        if (!none) throw py::error_already_set();
        Py_DECREF(none);
    }
}

int set_attribute(PyObject* self, PyObject* name, PyObject* value) {
    const auto check = [&] {
        if (value) check_attribute(self, name);
        return Py_None;
    };
    return guarded(check) ? PyObject_GenericSetAttr(self, name, value) : -1;
}

} // namespace

// For those who look at shared libraries by their symbols, as threadpoolctl does.
extern "C" PYBIND11_EXPORT int thalweg_get_num_threads() { return get_num_threads(); }

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    const char* wanted = std::getenv("THALWEG_ISA");
    try {
        use_level(find_level(wanted ? wanted : ""));
    } catch (const std::invalid_argument& error) {
        throw py::import_error(std::string("THALWEG_ISA: ") + error.what());
    }
    m.attr("__version__") = THALWEG_VERSION;
    m.attr("isa_compiled") = py::tuple(py::cast(names_of(compiled_levels())));
    m.attr("isa_supported") = py::tuple(py::cast(names_of(supported_levels())));
    m.attr("isa") = level_in_use().name;

    m.def("get_num_threads", &get_num_threads, "The most threads a step may use.");
    m.def(
        "set_num_threads",
        [](const py::object& value) {
            constexpr const char* expected =
                "num_threads: expected a whole number from 1 to 65536, "
                "received ";
            if (!PyIndex_Check(value.ptr()) || PyBool_Check(value.ptr()))
                throw py::type_error(expected + std::string(py::repr(value)));
            const Py_ssize_t count = PyNumber_AsSsize_t(value.ptr(), nullptr);
            if (count == -1 && PyErr_Occurred()) throw py::error_already_set();
            if (count < 1 || count > 65536)
                throw py::value_error(expected + std::string(py::repr(value)));
            set_num_threads(static_cast<int>(count));
        },
        py::arg("num_threads"),
        "Set the most threads a step may use, the caller's included; more than there are CPUs, "
        "too.");

    define_row_grad(m);

    py::class_<Optimizer> optimizer(m, "Optimizer", collected<Optimizer>(set_attribute),
                                    "The native base of the optimizers.");
    optimizer
        .def(
            "__init__",
            [](py::detail::value_and_holder& self, const py::object& tree, const py::list& leaves,
               const py::list& groups, const py::object& bound) {
                const auto made = ::new Optimizer(tree, py::tuple(leaves), py::tuple(groups), bound,
                                                  level_in_use());
                initialise(self, made, "optimizer");
            },
            py::detail::is_new_style_constructor(), py::arg("tree"), py::arg("leaves"),
            py::arg("groups"), py::arg("bound"))
        .def_property_readonly("step_count", alone(&Optimizer::step_count),
                               "Steps taken, skipped ones not counted.")
        .def_property_readonly("skipped_steps", alone(&Optimizer::skipped_steps),
                               "Steps left out because of a non-finite gradient.")
        .def_property_readonly(
            "grad_norm", alone(&Optimizer::grad_norm),
            "The global norm of the last step taken with max_norm, before clipping; None "
            "before.\n\n"
            "The root of the sum of float64(g)**2 over all gradients of the step, after scale and\n"
            "max_value. The sum is a fixed tree: blocks of 16,384 elements in C order, 32 lanes in "
            "a\n"
            "block (element i to lane i mod 32), lanes added in adjacent pairs until one is left,\n"
            "blocks in order, arrays in the order of params.")
        .def_property_readonly(
            "last_lr", alone(&Optimizer::last_lr),
            "The learning rate that the last step used, one for each group: what a schedule gave, "
            "before\n"
            "lr_decay. None for a group that no step has used: before the first one, and where it "
            "has\nalways been frozen. A group that is frozen keeps what it had.")
        .def_property(
            "max_norm", limit<Optimizer>("max_norm"), set_limit<Optimizer>("max_norm"),
            "The global norm that gradients are scaled down to, or None; with math.inf it is "
            "measured "
            "only.")
        .def_property("max_array_norm", limit<Optimizer>("max_array_norm"),
                      set_limit<Optimizer>("max_array_norm"),
                      "The norm that each array's gradient is scaled down to by itself, or None.")
        .def_property("norm_eps", limit<Optimizer>("norm_eps"), set_limit<Optimizer>("norm_eps"),
                      "What is added to the norm that max_norm or max_array_norm is divided by.")
        .def_property("max_value", limit<Optimizer>("max_value"), set_limit<Optimizer>("max_value"),
                      "The magnitude that elements of gradients are clipped to, or None.")
        .def_property("on_nonfinite", alone(&Optimizer::on_nonfinite),
                      alone(&Optimizer::set_on_nonfinite), "propagate, skip or raise.")
        .def_property("zero_grads", alone(&Optimizer::zero_grads),
                      alone(&Optimizer::set_zero_grads),
                      "Whether a step zeroes the gradients that it has used, where they lie.")
        .def_property("weight_average", alone(&Optimizer::weight_average),
                      alone(&Optimizer::set_weight_average),
                      "How much of its averages a step keeps; None: there are none. A number where "
                      "there was\nnone begins them, None lets them go.")
        .def("_average_of", alone(&Optimizer::average_of), py::arg("leaf"))
        .def_property("_averages_started", alone(&Optimizer::averages_started),
                      alone(&Optimizer::set_averages_started))
        .def(
            "_add_group",
            [](Optimizer& self, const py::object& tree, const py::list& leaves,
               const py::tuple& group, const py::object& container) {
                const Alone alone(self.lock());
                self.add_group(tree, py::tuple(leaves), group, container);
            },
            py::arg("tree"), py::arg("leaves"), py::arg("group"), py::arg("container"))
        .def("_replace", alone(&Optimizer::replace), py::arg("leaf"), py::arg("array"),
             py::arg("state") = py::none())
        .def("_state_of", alone(&Optimizer::state_of), py::arg("leaf"))
        .def("_bound_of", alone(&Optimizer::bound_of), py::arg("leaf"))
        .def_property_readonly("_is_bound", alone(&Optimizer::is_bound))
        .def_property("_unbound", alone(&Optimizer::unbound), alone(&Optimizer::set_unbound))
        .def("_steps_of", alone(&Optimizer::steps_of), py::arg("leaf"))
        .def("_get_option", alone(&Optimizer::get_option), py::arg("group"), py::arg("name"))
        .def("_set_option", alone(&Optimizer::set_option), py::arg("group"), py::arg("name"),
             py::arg("value"))
        .def("_set_counters", alone(&Optimizer::set_counters), py::arg("step_count"),
             py::arg("steps"), py::arg("skipped_steps") = 0, py::arg("grad_norm") = py::none(),
             py::arg("last_lr") = py::none())
        .def("_enter", alone(&Optimizer::enter))
        .def("_leave", alone(&Optimizer::leave))
        .def_property_readonly("_refusal", alone(&Optimizer::refusal))
        .def("_refuse_steps", alone(&Optimizer::refuse_steps), py::arg("why"))
        .def("_watch", alone(&Optimizer::watch), py::arg("params"), py::arg("grads") = py::none())
        .def(
            "_watch_copies",
            [](Optimizer& self, const Optimizer& other, const py::dict& memo) {
                const Alone alone(self.lock(), other.lock());
                self.watch_copies(other, memo);
            },
            py::arg("other"), py::arg("memo"))
        .def_property_readonly("_is_watching", alone(&Optimizer::is_watching))
        .def(
            "_use_level",
            [](Optimizer& self, const std::string& level) {
                const Alone alone(self.lock());
                self.use_level(find_level(level));
            },
            py::arg("level"));
    optimizer.attr("step") = py::reinterpret_steal<py::object>(
        PyDescr_NewMethod(reinterpret_cast<PyTypeObject*>(optimizer.ptr()), &step_definition));
    optimizer.attr("lr") = py::reinterpret_steal<py::object>(
        PyDescr_NewGetSet(reinterpret_cast<PyTypeObject*>(optimizer.ptr()), &lr_definition));
    define_joint(m);

    define_torch(m);

    m.def(
        "add_in_order",
        [](const py::object& out, const py::object& slices, const std::string& level) {
            add_in_order(out, py::tuple(slices), level_or_default(level));
        },
        py::arg("out"), py::arg("slices"), py::arg("level") = "");
    m.def(
        "block_sums",
        [](const py::object& values, const std::string& level) {
            return block_sums(values, level_or_default(level));
        },
        py::arg("values"), py::arg("level") = "");

    m.def(
        "native",
        [](const py::object& general, const std::string& signature) {
            return py::reinterpret_steal<py::object>(
                native_function(general.ptr(), signature.c_str()));
        },
        py::arg("general"), py::arg("signature"));
    m.def(
        "_use_level", [](const std::string& name) { use_level(find_level(name)); },
        py::arg("level"));
    m.def(
        "apply",
        [](const std::string& kernel, const py::object& params, const py::object& grads,
           const py::object& states, const std::string& state_name, const py::dict& options,
           bool numbered, const py::object& norm, const std::string& level) {
            return apply(kernel, py::tuple(params), py::tuple(grads), states, state_name.c_str(),
                         options, numbered, norm, level_or_default(level));
        },
        py::arg("kernel"), py::arg("params"), py::arg("grads"), py::arg("states"),
        py::arg("state_name"), py::arg("options"), py::arg("numbered") = false,
        py::arg("norm") = py::none(), py::arg("level") = "");
}

} // namespace thalweg

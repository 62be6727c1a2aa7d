#include "group.hpp"

#include <limits>
#include <utility>

#include "array.hpp"
#include "thread/floatmode.hpp"

namespace thalweg {

namespace {

std::string text_of(double value) { return py::str(py::float_(value)); }

void check_range(const OptionSpec& spec, double value, bool float32, const std::string& what) {
    if (spec.accepts(value, float32)) return;
    std::string message = what + ": expected " + spec.range + ", received " + text_of(value);
    if (spec.accepts(value, false))
        message += ", which float32 arrays see as " + text_of(static_cast<float>(value));
    throw py::value_error(message);
}

bool Options::* find_flag(const std::string& name) {
    if (name == "decoupled") return &Options::decoupled;
    if (name == "maximize") return &Options::maximize;
    if (name == "frozen") return &Options::frozen;
    return nullptr;
}

constinit Imported numpy_bool("numpy", "bool_");

bool is_bool(py::handle value) {
    return PyBool_Check(value.ptr()) || is_instance(value.ptr(), numpy_bool.get());
}

double as_double(py::handle value, const OptionSpec& spec, const std::string& what) {
    if (!is_bool(value)) {
        // NumPy takes one element for a number, with a warning.
        const bool many = is_array(value.ptr()) && fields(value.ptr()).nd != 0;
        const double number = many ? -1.0 : PyFloat_AsDouble(value.ptr());
        if (many) PyErr_SetNone(PyExc_TypeError);
        if (number != -1.0 || !PyErr_Occurred()) return number;
        const bool overflows = PyErr_ExceptionMatches(PyExc_OverflowError) != 0; // 10**400
        if (!overflows && !PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
        PyErr_Clear();
        if (overflows) {
            const bool negative = value < py::int_(0);
            const double huge = std::numeric_limits<double>::infinity();
            return negative ? -huge : huge;
        }
    }
    std::string cure;
    if (is_array(value.ptr()) && fields(value.ptr()).nd != 0)
        cure = value.attr("size").cast<py::ssize_t>() == 1
                   ? "; pass its .item()"
                   : "; one number holds for all of an array: groups have others";
    else if (PyUnicode_Check(value.ptr()))
        cure = "; pass float(...) of it";
    throw py::type_error(what + ": expected " + spec.range + ", received " +
                         std::string(py::str(py::type::of(value).attr("__qualname__"))) + " " +
                         std::string(py::repr(value)) + cure);
}

// As option_number(), with no words made for a number that is right.
double scheduled_number(const OptionSpec& spec, py::handle value, bool float32,
                        std::uint64_t step_count) {
    if (PyFloat_CheckExact(value.ptr())) {
        const DefaultFloatMode mode;
        const double number = settled(PyFloat_AS_DOUBLE(value.ptr()));
        if (spec.accepts(number, float32)) return number;
    }
    return option_number(spec, value, float32,
                         std::string(spec.name) + " (a schedule, at step " +
                             std::to_string(step_count) + ")");
}

} // namespace

double option_number(const OptionSpec& spec, py::handle value, bool float32,
                     const std::string& what) {
    const DefaultFloatMode mode; // with FTZ/DAZ a subnormal would count as 0
    const double number = settled(as_double(value, spec, what));
    check_range(spec, number, float32, what);
    return number;
}

bool bool_of(py::handle value, const std::string& what) {
    if (!is_bool(value))
        throw py::type_error(what + ": expected True or False, received " +
                             std::string(py::repr(value)));
    return PyObject_IsTrue(value.ptr()) == 1;
}

void Group::set(const std::string& name, py::handle value, const std::string& what) {
    if (const auto flag = find_flag(name)) {
        constant_.*flag = bool_of(value, what);
        fresh_ = false;
        return;
    }
    const OptionSpec* spec = find_option(name.c_str());
    if (!spec) throw py::key_error(name);
    if (spec->may_vary && PyCallable_Check(value.ptr())) {
        set(*spec, constant_.*(spec->field), py::reinterpret_borrow<py::object>(value));
    } else { // may run code of the caller's, a step even: nothing is changed before it
        const double number = option_number(*spec, value, float32, what);
        set(*spec, number, {});
    }
}

py::object Group::set(const OptionSpec& spec, double number, py::object schedule) {
    constant_.*(spec.field) = number;
    fresh_ = false;
    py::object& mine = schedules_[static_cast<std::size_t>(&spec - option_specs)];
    if (!mine && !schedule) return {};
    std::swap(schedule, mine);
    scheduled_ = false;
    for (const py::object& each : schedules_) scheduled_ = scheduled_ || each;
    return schedule;
}

py::object Group::get(const std::string& name) const {
    if (const auto flag = find_flag(name)) return py::bool_(constant_.*flag);
    const OptionSpec* spec = find_option(name.c_str());
    if (!spec) throw py::key_error(name);
    const py::object& schedule = schedules_[static_cast<std::size_t>(spec - option_specs)];
    if (schedule) return schedule;
    return py::float_(constant_.*(spec->field));
}

void Group::begin_step(double scale, const Limits& limits) {
    fresh_ = false;
    current = constant_;
    current.scale = scale;
    current.max_value = limits.max_value;
    current.judged = limits.judge();
    if (scheduled_) {
        asked_ = schedules_;
        return;
    }
    check_decay();
    fresh_ = limits.max_norm == 0;
}

void Group::ask_schedules(std::uint64_t step_count) {
    const Schedules asked = std::exchange(asked_, {});
    if (current.frozen) return;
    bool any = false;
    for (std::size_t i = 0; i < option_count; ++i) {
        if (!asked[i]) continue;
        any = true;
        const OptionSpec& spec = option_specs[i];
        const py::int_ step(step_count);
        const auto value =
            py::reinterpret_steal<py::object>(PyObject_CallOneArg(asked[i].ptr(), step.ptr()));
        if (!value) throw py::error_already_set();
        current.*(spec.field) = scheduled_number(spec, value, float32, step_count);
    }
    if (any) check_decay();
}

void Group::check_decay() const {
    if (!is_decay_finite(current, float32))
        throw py::value_error("weight_decay: expected a finite 1 - lr * weight_decay, "
                              "received lr " +
                              text_of(current.lr) + " and weight_decay " +
                              text_of(current.weight_decay));
}

int Group::traverse(visitproc visit, void* arg) const {
    for (const Schedules* each : {&schedules_, &asked_})
        for (const py::object& schedule : *each) Py_VISIT(schedule.ptr());
    return 0;
}

void Group::clear() {
    scheduled_ = false;
    const auto gone = std::pair(std::exchange(schedules_, {}), std::exchange(asked_, {}));
}

} // namespace thalweg

#include "functional.hpp"

#include <array>
#include <limits>
#include <string>

#include "array.hpp"
#include "group.hpp"
#include "guarded.hpp"
#include "held.hpp"
#include "judge.hpp"
#include "step/level.hpp"
#include "thread/floatmode.hpp"
#include "usual.hpp"

namespace thalweg {

namespace {

// The arguments that these functions have, and the numbers among them.
enum Slot : std::size_t {
    param,
    grad,
    rows,
    values,
    state,
    form,
    nesterov,
    eps_placement,
    decoupled,
    maximize,
    on_nonfinite,
    norm,
    lr,
    momentum,
    dampening,
    weight_decay,
    eps,
    scale,
    max_norm,
    norm_eps,
    max_value,
    slots
};
constexpr std::size_t first_number = lr;

using Values = std::array<PyObject*, slots>;

struct Argument {
    const char* name;
    Slot slot;
    PyObject* interned = nullptr;
};

struct Function {
    const char* name;
    bool adagrad, by_rows;
    std::vector<Argument> arguments; // those by position first
    std::size_t positional;
    PyObject* general = nullptr;
    std::string text{};
    PyMethodDef definition{};
};

constexpr const char* forms[] = {"heavy_ball", "classic", "ema"};
constexpr const char* placements[] = {"inside", "outside"};

struct Words {
    PyObject *forms[3], *placements[2], *judgements[3];
    const OptionSpec* specs[slots];
};
Words words;

std::vector<Argument> arguments_of(bool adagrad, bool by_rows) {
    std::vector<Argument> made;
    made.push_back({by_rows ? "table" : "param", param});
    if (by_rows) {
        made.push_back({"rows", rows});
        made.push_back({"values", values});
    } else {
        made.push_back({"grad", grad});
    }
    made.push_back({adagrad ? "accumulator" : "velocity", state});
    made.push_back({"lr", lr});
    if (adagrad) {
        made.push_back({"eps", eps});
        made.push_back({"eps_placement", eps_placement});
    } else {
        made.push_back({"momentum", momentum});
        made.push_back({"dampening", dampening});
        made.push_back({"nesterov", nesterov});
        made.push_back({"form", form});
    }
    for (const Argument& each :
         {Argument{"weight_decay", weight_decay}, Argument{"decoupled", decoupled},
          Argument{"maximize", maximize}, Argument{"scale", scale}, Argument{"max_norm", max_norm},
          Argument{"norm_eps", norm_eps}, Argument{"max_value", max_value},
          Argument{"on_nonfinite", on_nonfinite}, Argument{"norm", norm}})
        made.push_back(each);
    return made;
}

Function functions[] = {{"sgd_", false, false, arguments_of(false, false), 3},
                        {"adagrad_", true, false, arguments_of(true, false), 3},
                        {"sgd_rows_", false, true, arguments_of(false, true), 4},
                        {"adagrad_rows_", true, true, arguments_of(true, true), 4}};

// False: not usual.
bool read_arguments(const Function& function, PyObject* const* args, Py_ssize_t count,
                    PyObject* keywords, Values& given) {
    const auto positional = static_cast<std::size_t>(count);
    if (positional > function.positional) return false;
    for (std::size_t i = 0; i < positional; ++i) given[function.arguments[i].slot] = args[i];
    const Py_ssize_t named = keywords ? PyTuple_GET_SIZE(keywords) : 0;
    for (Py_ssize_t i = 0; i < named; ++i) {
        PyObject* const name = PyTuple_GET_ITEM(keywords, i);
        const Argument* found = nullptr;
        for (const Argument& each : function.arguments)
            if (each.interned == name) {
                found = &each;
                break;
            }
        if (!found || given[found->slot]) return false;
        given[found->slot] = args[count + i];
    }
    return true;
}

// Sets `index` to the place of an interned word, if one is given.
template <std::size_t n> bool read_word(PyObject* value, PyObject* const (&known)[n], int& index) {
    if (!value) return true;
    for (std::size_t i = 0; i < n; ++i)
        if (known[i] == value) {
            index = static_cast<int>(i);
            return true;
        }
    return false;
}

bool read_flag(PyObject* value, bool& flag) {
    if (!value) return true;
    flag = value == Py_True;
    return flag || value == Py_False;
}

// Numbers whose reading runs no code of the caller's.
bool read_number(PyObject* value, const OptionSpec& spec, bool float32, double& number) {
    if (PyFloat_Check(value)) {
        number = PyFloat_AS_DOUBLE(value);
    } else if (PyLong_CheckExact(value)) {
        number = PyLong_AsDouble(value);
        if (number == -1.0 && PyErr_Occurred()) {
            PyErr_Clear();
            return false;
        }
    } else {
        return false;
    }
    number = settled(number);
    return spec.accepts(number, float32);
}

bool read_numbers(const Values& given, bool float32, Options& options, Limits& limits) {
    const DefaultFloatMode mode;
    for (std::size_t slot = first_number; slot < slots; ++slot) {
        PyObject* const value = given[slot];
        if (!value || (value == Py_None && (slot == max_norm || slot == max_value))) continue;
        const OptionSpec& spec = *words.specs[slot];
        double& number = slot == max_norm   ? limits.max_norm
                         : slot == norm_eps ? limits.norm_eps
                                            : options.*(spec.field);
        if (!read_number(value, spec, float32, number)) return false;
    }
    return is_decay_finite(options, float32);
}

bool is_zero(PyObject* value) {
    return !value || (PyFloat_Check(value) && PyFloat_AS_DOUBLE(value) == 0.0) ||
           (PyLong_CheckExact(value) && PyObject_IsTrue(value) == 0);
}

// Null: not usual.
const Kernel* kernel_for(const Function& function, const Values& given, const Level& level) {
    const auto kernel = [&](KernelIndex index, int further = 0) {
        return &level.kernels[static_cast<std::size_t>(index) + static_cast<std::size_t>(further)];
    };
    if (function.adagrad) {
        int placement = 0;
        if (!given[state] || !read_word(given[eps_placement], words.placements, placement))
            return nullptr;
        if (!function.by_rows) return kernel(KernelIndex::adagrad_inside, placement);
        if (!is_array(given[state]) || !is_array(given[param])) return nullptr;
        const bool by_row = fields(given[state]).nd == 1 && fields(given[param]).nd > 1;
        return kernel(by_row ? KernelIndex::adagrad_row_inside : KernelIndex::adagrad_inside,
                      placement);
    }
    int shape = 0;
    bool ahead = false;
    if (!read_word(given[form], words.forms, shape) || !read_flag(given[nesterov], ahead) ||
        !is_zero(given[dampening]) || (ahead && shape == 2))
        return nullptr;
    if (!given[state]) return is_zero(given[momentum]) ? kernel(KernelIndex::sgd) : nullptr;
    switch (shape) {
    case 0: return kernel(KernelIndex::heavy_ball, ahead);
    case 1: return kernel(KernelIndex::classic, ahead);
    default: return kernel(KernelIndex::ema);
    }
}

bool is_list(PyObject* value) { return PyList_CheckExact(value) || PyTuple_CheckExact(value); }

bool add_arrays(const Function& function, const Values& given, const Level& level,
                const Kernel& kernel, Usual& usual) {
    if (function.by_rows) {
        usual.begin(level, kernel, 1);
        return usual.add_rows(given[param], given[rows], given[values], given[state]);
    }
    if (!is_list(given[param])) {
        usual.begin(level, kernel, 1);
        return usual.add(given[param], given[grad], given[state]);
    }
    const auto length = [](PyObject* list) { return PySequence_Fast_GET_SIZE(list); };
    const auto item = [](PyObject* list, Py_ssize_t i) {
        return PySequence_Fast_GET_ITEM(list, i);
    };
    const Py_ssize_t count = length(given[param]);
    for (PyObject* list : {given[grad], given[state]})
        if (list && (!is_list(list) || length(list) != count)) return false;
    usual.begin(level, kernel, static_cast<std::size_t>(count));
    for (Py_ssize_t i = 0; i < count; ++i)
        if (!usual.add(item(given[param], i), item(given[grad], i),
                       given[state] ? item(given[state], i) : nullptr))
            return false;
    return true;
}

// Where the norm is to be left, or null.
bool read_norm(PyObject* array, const Usual& usual, double*& left_in) {
    if (!array || array == Py_None) return true;
    if (!is_array(array) || dtype_of(fields(array).descr) != Dtype::float64) return false;
    constexpr int wanted =
        py::detail::npy_api::NPY_ARRAY_WRITEABLE_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    const auto& a = fields(array);
    if ((a.flags & wanted) != wanted) return false;
    for (int i = 0; i < a.nd; ++i)
        if (a.dimensions[i] != 1) return false;
    left_in = reinterpret_cast<double*>(a.data);
    return usual.is_apart_from({a.data, a.data + sizeof(double)});
}

// True or False, or null: not usual, and nothing has changed.
PyObject* step(const Function& function, Values& given) {
    if (!given[param] || !given[lr]) return nullptr;
    if (function.by_rows ? !given[rows] || !given[values] : !given[grad]) return nullptr;
    if (given[state] == Py_None) given[state] = nullptr;
#ifdef Py_GIL_DISABLED
    std::array<py::object, slots> held;
    for (const Slot slot : {param, grad, state})
        if (given[slot] && PyList_CheckExact(given[slot]))
            given[slot] = (held[slot] = items_of(given[slot])).ptr();
#endif
    const Level& level = level_in_use();
    const Kernel* kernel = kernel_for(function, given, level);
    if (!kernel) return nullptr;
    Options options;
    Limits limits;
    int judgement = 0;
    if (!read_flag(given[decoupled], options.decoupled) ||
        !read_flag(given[maximize], options.maximize) ||
        !read_word(given[on_nonfinite], words.judgements, judgement))
        return nullptr;
    limits.on_nonfinite = static_cast<OnNonfinite>(judgement);
    options.eps = 1e-8;
    Usual& usual = Usual::of_this_thread();
    double* left_in = nullptr;
    if (!add_arrays(function, given, level, *kernel, usual) || !usual.are_apart() ||
        !read_numbers(given, usual.any_float32(), options, limits) ||
        !read_norm(given[norm], usual, left_in))
        return nullptr;
    // To be measured, but never clipped.
    if (left_in && limits.max_norm == 0) limits.max_norm = std::numeric_limits<double>::infinity();
    double found = 0;
    switch (usual.run(options, limits, found)) {
    case Usual::Outcome::applied:
        if (left_in) *left_in = found;
        return Py_NewRef(Py_True);
    case Usual::Outcome::skipped: return Py_NewRef(Py_False);
    case Usual::Outcome::unusual: break;
    }
    return nullptr;
}

template <std::size_t index>
PyObject* call(PyObject*, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
    const Function& function = functions[index];
    return guarded([&]() -> PyObject* {
        Values given{};
        if (read_arguments(function, args, count, keywords, given))
            if (PyObject* done = step(function, given)) return done;
        return PyObject_Vectorcall(function.general, args, static_cast<std::size_t>(count),
                                   keywords);
    });
}

constexpr PyObject* (*calls[])(PyObject*, PyObject* const*, Py_ssize_t,
                               PyObject*) = {&call<0>, &call<1>, &call<2>, &call<3>};

template <std::size_t n> void intern(const char* const (&texts)[n], PyObject* (&to)[n]) {
    for (std::size_t i = 0; i < n; ++i) to[i] = PyUnicode_InternFromString(texts[i]);
}

} // namespace

PyObject* native_function(PyObject* general, const char* signature) {
    const auto name = py::handle(general).attr("__name__").cast<std::string>();
    for (std::size_t i = 0; i < std::size(functions); ++i) {
        Function& function = functions[i];
        if (name != function.name) continue;
        intern(forms, words.forms);
        intern(placements, words.placements);
        intern(nonfinite_names, words.judgements);
        for (Argument& each : function.arguments) {
            each.interned = PyUnicode_InternFromString(each.name);
            words.specs[each.slot] = find_option(each.name);
        }
        function.general = Py_NewRef(general);
        function.text =
            name + signature + "\n--\n\n" + py::handle(general).attr("__doc__").cast<std::string>();
        function.definition = {
            function.name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(calls[i])),
            METH_FASTCALL | METH_KEYWORDS, function.text.c_str()};
        const py::object module = py::handle(general).attr("__module__");
        return PyCFunction_NewEx(&function.definition, nullptr, module.ptr());
    }
    throw py::value_error("native: expected a function of the core's, received " + name);
}

} // namespace thalweg

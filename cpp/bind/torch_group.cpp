#include "torch_group.hpp"

#include "group.hpp"
#include "torch_dict.hpp"

namespace thalweg {

namespace {

PyObject* option(PyObject* dict, const char* name) {
    PyObject* const value = PyDict_GetItemString(dict, name);
    return value == Py_None ? nullptr : value;
}

bool flag(PyObject* dict, const char* name) {
    PyObject* const value = option(dict, name);
    if (!value) return false;
    const int truth = PyObject_IsTrue(value);
    if (truth < 0) throw py::error_already_set();
    return truth != 0;
}

bool is_immutable(PyObject* value) {
    return value == Py_None || PyBool_Check(value) || PyFloat_CheckExact(value) ||
           PyLong_CheckExact(value) || PyUnicode_CheckExact(value);
}

std::string place(std::size_t index, const char* name) {
    return "param_groups[" + std::to_string(index) + "][\"" + name + "\"]";
}

// The index of the option's word among those known; 0, the first, if it is not given.
template <std::size_t n>
std::size_t word(PyObject* dict, const char* name, const char* const (&known)[n],
                 std::size_t index) {
    PyObject* const value = option(dict, name);
    if (!value) return 0;
    std::string expected;
    for (std::size_t i = 0; i < n; ++i) {
        if (PyUnicode_Check(value) && PyUnicode_CompareWithASCIIString(value, known[i]) == 0)
            return i;
        expected += std::string(i == 0 ? "" : i + 1 == n ? " or " : ", ") + known[i];
    }
    throw py::value_error(place(index, name) + ": expected " + expected + ", received " +
                          std::string(py::repr(value)));
}

constexpr const char* forms[] = {"heavy_ball", "classic", "ema"};
constexpr const char* placements[] = {"outside", "inside"};

} // namespace

void TorchGroup::read(const Torch& torch, PyObject* dict, std::size_t index) {
    if (is_as_read(dict)) return;
    forget();
    refused = nullptr;
    options = Options();
    limits = Limits();
    fused = flag(dict, "fused");
    if (flag(dict, "differentiable")) refused = "a differentiable step";
    options.lr = number(torch, dict, "lr", 0);
    options.weight_decay = number(torch, dict, "weight_decay", 0);
    options.maximize = flag(dict, "maximize");
    options.decoupled = flag(dict, "decoupled");
    limits.max_norm = limit(dict, "max_norm", index);
    if (option(dict, "norm_eps")) limits.norm_eps = limit(dict, "norm_eps", index);
    limits.max_value = options.max_value = limit(dict, "max_value", index);
    if (PyObject* const judged = option(dict, "on_nonfinite"))
        limits.on_nonfinite = nonfinite_called(judged);
    options.judged = limits.judge();
    if (rule_ == TorchRule::sgd)
        read_sgd(torch, dict, index);
    else
        read_adagrad(torch, dict, index);
    params_ = PyDict_GetItemString(dict, "params");
    if (!is_sequence(params_)) {
        params_ = nullptr;
        throw py::type_error(place(index, "params") + ": expected a list, received " +
                             (params_ ? std::string(py::repr(params_)) : "none"));
    }
    if (!take_entries(dict)) forget();
}

void TorchGroup::read_sgd(const Torch& torch, PyObject* dict, std::size_t index) {
    options.momentum = number(torch, dict, "momentum", 0);
    options.dampening = number(torch, dict, "dampening", 0);
    has_state = options.momentum != 0;
    const bool nesterov = flag(dict, "nesterov");
    const std::size_t form = word(dict, "form", forms, index);
    if (form != 0 && options.dampening != 0)
        throw py::value_error(place(index, "dampening") + ": expected 0 with form=\"" +
                              forms[form] + "\", received another; it belongs to heavy_ball");
    if (form == 2 && nesterov)
        throw py::value_error(place(index, "nesterov") +
                              ": expected False with form=\"ema\", received True");
    constexpr KernelIndex kernels[] = {KernelIndex::heavy_ball, KernelIndex::classic,
                                       KernelIndex::ema};
    kernel = !has_state ? KernelIndex::sgd : kernels[form];
    if (has_state && nesterov)
        kernel = form == 0 ? KernelIndex::heavy_ball_nesterov : KernelIndex::classic_nesterov;
}

void TorchGroup::read_adagrad(const Torch& torch, PyObject* dict, std::size_t index) {
    options.lr_decay = number(torch, dict, "lr_decay", 0);
    options.eps = number(torch, dict, "eps", 1e-10);
    has_state = true;
    kernel = word(dict, "eps_placement", placements, index) == 0 ? KernelIndex::adagrad_outside
                                                                 : KernelIndex::adagrad_inside;
}

// A number as torch takes it; a tensor is asked at every step.
double TorchGroup::number(const Torch& torch, PyObject* dict, const char* name, double otherwise) {
    PyObject* const value = option(dict, name);
    if (!value) return otherwise;
    if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
    if (torch.is_tensor(value)) {
        const py::handle tensor(value);
        if (!torch.is_plain_tensor(value) || tensor.attr("requires_grad").cast<bool>() ||
            tensor.attr("is_complex")().cast<bool>() || tensor.attr("is_meta").cast<bool>() ||
            tensor.attr("numel")().cast<std::size_t>() != 1) {
            refused = "an option that is a tensor to be differentiated, or no number";
            return otherwise;
        }
        return tensor.attr("item")().cast<double>();
    }
    const double number = PyFloat_AsDouble(value);
    if (number == -1.0 && PyErr_Occurred()) {
        PyErr_Clear();
        refused = "an option that is no number";
    }
    return number;
}

double TorchGroup::limit(PyObject* dict, const char* name, std::size_t index) const {
    PyObject* const value = option(dict, name);
    return value ? option_number(*find_option(name), value, true, place(index, name)) : 0;
}

bool TorchGroup::is_as_read(PyObject* dict) {
    if (entries_.empty() || PyDict_GET_SIZE(dict) != static_cast<Py_ssize_t>(entries_.size()))
        return false;
    Py_ssize_t at = 0;
    PyObject *key, *value;
    for (const Entry& entry : entries_)
        if (!PyDict_Next(dict, &at, &key, &value) || entry.key != key || entry.value != value)
            return false;
    return true;
}

// False: one of them may change without being replaced.
bool TorchGroup::take_entries(PyObject* dict) {
    Py_ssize_t at = 0;
    PyObject *key, *value;
    while (PyDict_Next(dict, &at, &key, &value)) {
        const bool immutable = is_immutable(value);
        // Lists, as that of the params, are read anew at every step, or concern no step.
        if (!immutable && !PyList_CheckExact(value)) return false;
        entries_.push_back({Py_NewRef(key), value, immutable});
        if (immutable) Py_INCREF(value);
    }
    return true;
}

void TorchGroup::forget() {
    for (const Entry& entry : entries_) {
        Py_DECREF(entry.key);
        if (entry.held) Py_DECREF(entry.value);
    }
    entries_.clear();
}

} // namespace thalweg

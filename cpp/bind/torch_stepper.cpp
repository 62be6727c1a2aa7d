#include "torch_stepper.hpp"

#include <algorithm>

#include "first_use.hpp"
#include "run.hpp"
#include "torch_dict.hpp"

namespace thalweg {

namespace {

constinit Word param_groups("param_groups"), pre_hooks("_optimizer_step_pre_hooks"),
    post_hooks("_optimizer_step_post_hooks"), found_inf("found_inf"), grad_scale("grad_scale");

bool is_given(PyObject* value) { return value && value != Py_None; }

bool is_empty(PyObject* hooks) {
    return !hooks || (PyDict_Check(hooks) && PyDict_GET_SIZE(hooks) == 0);
}

py::object attributes(PyObject* optimizer) {
    auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer, nullptr));
#ifdef Py_GIL_DISABLED
    if (dict) dict = py::reinterpret_steal<py::object>(PyDict_Copy(dict.ptr()));
#endif
    if (!dict) throw py::error_already_set();
    return dict;
}

// From here on the GIL is let go. Far more than where NumPy's arrays are stepped so: the memory of
// every operand has to be held meanwhile.
constexpr std::size_t long_torch_step = std::size_t{1} << 22;

// To look at operands that another thread moves meanwhile.
constexpr int attempts = 20;

} // namespace

TorchStepper::TorchStepper(const std::string& rule)
    : rule_(rule == "sgd" ? TorchRule::sgd
            : rule == "adagrad"
                ? TorchRule::adagrad
                : throw py::value_error("rule: expected sgd or adagrad, received " + rule)),
      torch_(Torch::get()), states_(rule_, torch_) {}

// Returns them as they are at this moment.
PyObject* TorchStepper::read_groups(PyObject* dict, TorchHeld& held) {
    PyObject* const given = item(dict, param_groups.get());
    if (!is_sequence(given))
        throw py::type_error("param_groups: expected a list of dicts, received another");
    PyObject* const list = as_it_is(given, held);
    const std::size_t count = length_of(list);
    while (groups_.size() > count) groups_.pop_back();
    while (groups_.size() < count) groups_.emplace_back(rule_);
    first_.assign(1, 0);
    params_.clear();
    for (std::size_t g = 0; g < count; ++g) {
        // A tensor among the options may run code that changes the list.
        if (length_of(list) != count) throw py::value_error("param_groups: changed during a step");
        PyObject* const group = item_at(list, g);
        if (!PyDict_Check(group))
            throw py::type_error("param_groups: expected dicts, received another");
        groups_[g].read(torch_, as_it_is(group, held), g);
        params_.push_back(as_it_is(groups_[g].params(), held));
        const Limits &first = groups_[0].limits, &mine = groups_[g].limits;
        if (first.max_norm != mine.max_norm || first.norm_eps != mine.norm_eps ||
            first.on_nonfinite != mine.on_nonfinite)
            throw py::value_error("param_groups[" + std::to_string(g) +
                                  "]: expected max_norm, norm_eps and on_nonfinite as in "
                                  "param_groups[0], received others; they hold for the whole step");
        first_.push_back(first_.back() + length_of(params_[g]));
    }
    limits_ = groups_.empty() ? Limits() : groups_[0].limits;
    return list;
}

void TorchStepper::check(PyObject* optimizer) {
    const Turn turn(gate_);
    TorchHeld held;
    read_groups(attributes(optimizer).ptr(), held);
}

void TorchStepper::collect(PyObject* optimizer, PyObject* dict, PyObject* left_out,
                           TorchHeld& held) {
    PyObject* const list = read_groups(dict, held);
    states_.begin(optimizer, dict, held);
    const std::size_t count = first_.back();
    if (leaves_.size() != count) {
        leaves_.resize(count);
        plan_.items.resize(count);
        cut_ = true;
    }
    if (const Level& level = level_in_use(); level_ != &level) level_ = &level;
    refused_.clear();
    plan_.has_sparse = false;
    places_.begin(2 * count);
    held.reserve(4 * count + 1);
    for (Item& each : plan_.items) each.active = false;
    const bool in_mode = torch_.is_in_mode();
    const bool scaled =
        is_given(item(dict, found_inf.get())) || is_given(item(dict, grad_scale.get()));
    for (std::size_t g = 0; g < groups_.size(); ++g) {
        PyObject* const options = held.share(item_at(list, g));
        PyObject* const params = params_[g];
        for (std::size_t k = 0; k < first_[g + 1] - first_[g]; ++k) {
            const std::size_t i = first_[g] + k;
            PyObject* const param = held.share(item_at(params, k));
            const auto pass = [this] {
                places_.add({});
                places_.add({});
            };
            if (left_out) {
                const py::tuple key = py::make_tuple(g, k);
                const int there = PySet_Contains(left_out, key.ptr());
                if (there < 0) throw py::error_already_set();
                if (there != 0) {
                    pass();
                    continue;
                }
            }
            const char* why = in_mode                       ? "a dispatch mode is active"
                              : scaled && !groups_[g].fused ? "found_inf without fused=True"
                                                            : nullptr;
            if (!why && torch_.is_plain_tensor(param)) {
                PyObject* const grad = held.take(torch_.grad_of(param));
                if (grad == Py_None) {
                    pass();
                    continue;
                }
                why = look_at(groups_[g], options, param, grad, i, held);
            } else if (!why) {
                const py::object grad = py::handle(param).attr("grad");
                if (grad.is_none()) {
                    pass();
                    continue;
                }
                why = "a subclass of torch.Tensor";
            }
            if (!why) continue;
            plan_.items[i].active = false;
            refused_.push_back({g, k, why});
            pass();
        }
    }
    if (!refused_.empty() || places_.are_apart()) return;
    for (std::size_t g = 0; g < groups_.size(); ++g)
        for (std::size_t i = first_[g]; i < first_[g + 1]; ++i)
            if (plan_.items[i].active)
                refused_.push_back({g, i - first_[g], "memory that may be another operand's too"});
}

const char* TorchStepper::look_at(TorchGroup& group, PyObject* options, PyObject* param,
                                  PyObject* grad, std::size_t i, TorchHeld& held) {
    if (group.refused) return group.refused;
    TorchLeaf& leaf = leaves_[i];
    leaf.begin();
    if (const char* why = leaf.look_at_param(torch_, param)) return why;
    if (const char* why = leaf.look_at_grad(torch_, grad)) {
        // is_sparse: of the COO layout.
        const bool sparse =
            torch_.is_plain_tensor(grad) && py::handle(grad).attr("is_sparse").cast<bool>();
        if (sparse) why = look_at_sparse(group, leaf, param, grad, held);
        if (why) return why;
    }
    bool is_new = false;
    if (group.has_state)
        if (const char* why = states_.look_at(leaf, param, options, is_new)) return why;
    cut_ |= leaf.describe(plan_.items[i], *level_, group, is_new);
    plan_.has_sparse |= plan_.items[i].sparse;
    leaf.occupy(places_, group.has_state);
    return nullptr;
}

const char* TorchStepper::look_at_sparse(TorchGroup& group, TorchLeaf& leaf, PyObject* param,
                                         PyObject* grad, TorchHeld& held) {
    if (group.fused || group.options.weight_decay != 0)
        return "a sparse gradient with weight_decay or fused=True";
    if (rule_ == TorchRule::sgd && group.has_state) return "a sparse gradient with momentum";
    const py::handle g(grad);
    torch_.note_call();
    if (!g.attr("shape").equal(py::handle(param).attr("shape")))
        return "a gradient of another shape";
    PyObject* const rows = held.take(g.attr("_indices")().release().ptr());
    PyObject* const values = held.take(g.attr("_values")().release().ptr());
    return leaf.look_at_rows(torch_, rows, values);
}

// What a GradScaler has set, for optimizers that are fused. False: leave the step out.
bool TorchStepper::scale(PyObject* dict) {
    PyObject* const found = item(dict, found_inf.get());
    PyObject* const by = item(dict, grad_scale.get());
    double factor = 1;
    if (is_given(found) || is_given(by)) torch_.note_call();
    if (is_given(found) && py::handle(found).attr("item")().cast<double>() != 0) return false;
    if (is_given(by)) factor = 1 / py::handle(by).attr("item")().cast<double>();
    for (TorchGroup& group : groups_) group.options.scale = factor;
    return true;
}

py::object TorchStepper::step(PyObject* optimizer, bool watchable, PyObject* left_out) {
    const py::object dict = attributes(optimizer);
    if (watchable && (torch_.is_watched() || !is_empty(item(dict.ptr(), pre_hooks.get())) ||
                      !is_empty(item(dict.ptr(), post_hooks.get()))))
        return py::none();
    const Turn turn(gate_);
    for (int attempt = 0; attempt < attempts; ++attempt) {
        TorchHeld held;
        [[maybe_unused]] const std::uint64_t calls = torch_.calls();
        collect(optimizer, dict.ptr(), left_out, held);
        if (!refused_.empty()) {
            py::list found;
            for (const Refused& each : refused_)
                found.append(py::make_tuple(each.group, each.index, each.why));
            return found;
        }
        if (!scale(dict.ptr())) return py::bool_(true);
#ifdef Py_GIL_DISABLED
        held.hold_memory(torch_);
        if (!are_still()) continue;
#else
        if (torch_.calls() != calls && !are_still()) continue;
#endif
        run(held);
        return py::bool_(true);
    }
    PyErr_SetString(PyExc_RuntimeError,
                    "step: expected params and gradients that stay where they are, received some "
                    "whose memory another thread replaced while they were looked at; let one "
                    "thread wait for the other");
    throw py::error_already_set();
}

bool TorchStepper::are_still() const {
    for (std::size_t g = 0; g < groups_.size(); ++g)
        for (std::size_t i = first_[g]; i < first_[g + 1]; ++i)
            if (plan_.items[i].active && !leaves_[i].is_still(torch_, groups_[g].has_state))
                return false;
    return true;
}

void TorchStepper::run(TorchHeld& held) {
    std::size_t bytes = 0;
    bool any = false;
    for (const Item& each : plan_.items) {
        if (!each.active) continue;
        any = true;
        bytes += each.reads() * size_of(each.dtype);
    }
    if (!any) return;
    if (cut_) {
        plan_.cut();
        cut_ = false;
    }
#ifndef Py_GIL_DISABLED
    if (bytes >= long_torch_step) held.hold_memory(torch_);
#endif
    const std::vector<PyObject*> lists = stepped(held);
    // Not before a step that may still be left out; else first, for then nothing can fail behind
    // it.
    const bool certain = !limits_.judge() && !plan_.has_sparse;
    if (certain)
        for (PyObject* list : lists) torch_.raise_versions(list);
    Part part{&plan_, limits_};
    const Ran ran = run_parts(
        {&part, 1},
        [&](std::size_t active_bytes) {
            take_part(part, active_bytes, [this](double clip) {
                for (TorchGroup& group : groups_) group.options.clip = clip;
            });
            if (!part.taken) return;
            for (std::size_t i = 0; i < leaves_.size(); ++i)
                if (plan_.items[i].active) leaves_[i].count_step();
        },
        long_torch_step);
    if (ran.bad)
        refuse_row(name_of(ran.bad->item) + ".grad._indices()", name_of(ran.bad->item),
                   static_cast<std::size_t>(leaves_[ran.bad->item].shape()[0]), ran.bad->row);
    if (!ran.threads_given) warn_of_refused_threads();
    if (part.refused) refuse_nonfinite(part);
    if (!part.taken) {
        ++skipped_steps_;
        return;
    }
    if (part.limits.max_norm != 0) grad_norm_ = part.norm, has_norm_ = true;
    if (!certain)
        for (PyObject* list : lists) torch_.raise_versions(list);
    states_.keep();
}

// The params of this step, in lists; a group's own where all of it takes part.
std::vector<PyObject*> TorchStepper::stepped(TorchHeld& held) const {
    std::vector<PyObject*> lists;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
        const auto first = plan_.items.begin() + static_cast<std::ptrdiff_t>(first_[g]);
        const auto last = plan_.items.begin() + static_cast<std::ptrdiff_t>(first_[g + 1]);
        PyObject* const params = params_[g];
        // Another's own __iter__ might run code of the caller's.
        const bool plain = PyList_CheckExact(params) || PyTuple_CheckExact(params);
        if (plain && std::all_of(first, last, [](const Item& each) { return each.active; })) {
            lists.push_back(params);
            continue;
        }
        PyObject* const some = PyList_New(0);
        if (!some) throw py::error_already_set();
        lists.push_back(held.take(some));
        for (auto each = first; each != last; ++each) {
            PyObject* const param = item_at(params, static_cast<std::size_t>(each - first));
            if (each->active && PyList_Append(some, param) != 0) throw py::error_already_set();
        }
    }
    return lists;
}

py::list TorchStepper::explain(PyObject* optimizer) {
    const Turn turn(gate_);
    const py::object dict = attributes(optimizer);
    TorchHeld held;
    collect(optimizer, dict.ptr(), nullptr, held);
    py::list found;
    auto refused = refused_.begin();
    for (std::size_t g = 0; g < groups_.size(); ++g)
        for (std::size_t k = 0; k < first_[g + 1] - first_[g]; ++k) {
            py::object why = py::none();
            if (refused != refused_.end() && refused->group == g && refused->index == k)
                why = py::str((refused++)->why);
            else if (!plan_.items[first_[g] + k].active)
                why = py::str("");
            found.append(py::make_tuple(g, k, why));
        }
    return found;
}

bool TorchStepper::zero_grad(PyObject* optimizer) {
    const py::object dict = attributes(optimizer);
    if (torch_.is_watched()) return false;
    PyObject* const list = item(dict.ptr(), param_groups.get());
    if (!is_sequence(list)) return false;
    const auto groups = py::reinterpret_borrow<py::object>(list);
    for (const py::handle group : groups) {
        const py::object given = group["params"];
        if (!is_sequence(given.ptr())) return false;
        TorchHeld held;
        PyObject* const params = as_it_is(given.ptr(), held);
        for (std::size_t i = 0; i < length_of(params); ++i) {
            const auto param = py::reinterpret_borrow<py::object>(item_at(params, i));
            if (torch_.is_plain_tensor(param.ptr()))
                torch_.drop_grad(param.ptr());
            else
                param.attr("grad") = py::none();
        }
    }
    return true;
}

std::string TorchStepper::name_of(std::size_t i) const {
    std::size_t g = 0;
    while (first_[g + 1] <= i) ++g;
    return "param_groups[" + std::to_string(g) + "][\"params\"][" + std::to_string(i - first_[g]) +
           "]";
}

void TorchStepper::refuse_nonfinite(Part& part) const {
    thalweg::refuse_nonfinite(
        {&part, 1}, "the gradients",
        [this](std::size_t, std::size_t i) { return name_of(i) + ".grad"; },
        [this](std::size_t, std::size_t i) { return leaves_[i].shape(); });
}

} // namespace thalweg

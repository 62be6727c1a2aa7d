#include "torch_stepper.hpp"

#include <algorithm>
#include <unordered_map>

#include "run.hpp"

namespace thalweg {

namespace {

PyObject* interned(const char* text) {
    PyObject* const word = PyUnicode_InternFromString(text);
    if (!word) throw py::error_already_set();
    return word;
}

struct Words {
    PyObject* param_groups = interned("param_groups");
    PyObject* state = interned("state");
    PyObject* momentum_buffer = interned("momentum_buffer");
    PyObject* sum = interned("sum");
    PyObject* step = interned("step");
    PyObject* pre_hooks = interned("_optimizer_step_pre_hooks");
    PyObject* post_hooks = interned("_optimizer_step_post_hooks");
    PyObject* found_inf = interned("found_inf");
    PyObject* grad_scale = interned("grad_scale");
    PyObject* fresh_state = interned("_fresh_state");
};
const Words* words = nullptr; // never released

PyObject* item(PyObject* dict, PyObject* key) {
    PyObject* const value = PyDict_GetItemWithError(dict, key);
    if (!value && PyErr_Occurred()) throw py::error_already_set();
    return value;
}

bool is_given(PyObject* value) { return value && value != Py_None; }

bool is_empty(PyObject* hooks) {
    return !hooks || (PyDict_Check(hooks) && PyDict_GET_SIZE(hooks) == 0);
}

py::object attributes(PyObject* optimizer) {
    auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(optimizer, nullptr));
    if (!dict) throw py::error_already_set();
    return dict;
}

// From here on the GIL is let go. Far more than where NumPy's arrays are stepped so: the memory of
// every operand has to be held meanwhile.
constexpr std::size_t long_torch_step = std::size_t{1} << 22;

// To look at operands that another thread moves meanwhile.
constexpr int attempts = 20;

} // namespace

// What a step keeps alive until it has ended.
class TorchStepper::Held {
  public:
    Held() = default;
    ~Held() {
        for (PyObject* object : objects_) Py_DECREF(object);
    }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;

    void reserve(std::size_t count) { objects_.reserve(count); }
    PyObject* take(PyObject* object) { // a reference that was ours
        try {
            objects_.push_back(object);
        } catch (...) {
            Py_DECREF(object);
            throw;
        }
        return object;
    }
    PyObject* share(PyObject* object) { return take(Py_NewRef(object)); }
    // The memory of all tensors among them, for while the GIL is free.
    void hold_memory(const Torch& torch) {
        const std::size_t count = objects_.size();
        objects_.reserve(2 * count);
        for (std::size_t i = 0; i < count; ++i)
            if (torch.is_plain_tensor(objects_[i])) take(torch.alias_of(objects_[i]));
    }

    struct Fresh {
        PyObject *param, *entries; // both held above
    };
    std::vector<Fresh> fresh;

  private:
    std::vector<PyObject*> objects_;
};

TorchStepper::TorchStepper(const std::string& rule)
    : rule_(rule == "sgd" ? TorchRule::sgd
            : rule == "adagrad"
                ? TorchRule::adagrad
                : throw py::value_error("rule: expected sgd or adagrad, received " + rule)),
      torch_(Torch::get()) {
    if (!words) words = new Words;
}

void TorchStepper::read_groups(PyObject* dict) {
    PyObject* const list = item(dict, words->param_groups);
    if (!list || !PyList_Check(list))
        throw py::type_error("param_groups: expected a list of dicts, received another");
    const auto count = static_cast<std::size_t>(PyList_GET_SIZE(list));
    while (groups_.size() > count) groups_.pop_back();
    while (groups_.size() < count) groups_.emplace_back(rule_);
    first_.assign(1, 0);
    for (std::size_t g = 0; g < count; ++g) {
        // A tensor among the options may run code that changes the list.
        if (static_cast<std::size_t>(PyList_GET_SIZE(list)) != count)
            throw py::value_error("param_groups: changed during a step");
        PyObject* const group = PyList_GET_ITEM(list, static_cast<Py_ssize_t>(g));
        if (!PyDict_Check(group))
            throw py::type_error("param_groups: expected dicts, received another");
        const auto kept = py::reinterpret_borrow<py::object>(group);
        groups_[g].read(torch_, group, g);
        const Limits &first = groups_[0].limits, &mine = groups_[g].limits;
        if (first.max_norm != mine.max_norm || first.norm_eps != mine.norm_eps ||
            first.on_nonfinite != mine.on_nonfinite)
            throw py::value_error("param_groups[" + std::to_string(g) +
                                  "]: expected max_norm, norm_eps and on_nonfinite as in "
                                  "param_groups[0], received others; they hold for the whole step");
        first_.push_back(first_.back() +
                         static_cast<std::size_t>(PyList_GET_SIZE(groups_[g].params())));
    }
    limits_ = groups_.empty() ? Limits() : groups_[0].limits;
}

void TorchStepper::check(PyObject* optimizer) {
    const Turn turn(gate_);
    read_groups(attributes(optimizer).ptr());
}

void TorchStepper::collect(PyObject* optimizer, PyObject* dict, PyObject* left_out, Held& held) {
    read_groups(dict);
    states_ = item(dict, words->state);
    if (!states_ || !PyDict_Check(states_))
        throw py::type_error("state: expected a dict, received another");
    held.share(states_);
    const std::size_t count = first_.back();
    if (leaves_.size() != count) {
        leaves_.resize(count);
        plan_.items.resize(count);
        cut_ = true;
    }
    if (const Level& level = level_in_use(); level_ != &level) level_ = &level;
    refused_.clear();
    found_positions_ = false;
    plan_.has_sparse = false;
    places_.begin(2 * count);
    held.reserve(4 * count + 1);
    for (Item& each : plan_.items) each.active = false;
    const bool in_mode = torch_.is_in_mode();
    const bool scaled =
        is_given(item(dict, words->found_inf)) || is_given(item(dict, words->grad_scale));
    PyObject* const list = held.share(item(dict, words->param_groups));
    for (std::size_t g = 0; g < groups_.size(); ++g) {
        PyObject* const options = held.share(PyList_GetItem(list, static_cast<Py_ssize_t>(g)));
        PyObject* const params = held.share(groups_[g].params());
        for (std::size_t k = 0; k < first_[g + 1] - first_[g]; ++k) {
            const std::size_t i = first_[g] + k;
            PyObject* const param = PyList_GetItem(params, static_cast<Py_ssize_t>(k));
            if (!param) throw py::error_already_set(); // shortened meanwhile
            held.share(param);
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
                why = look_at(optimizer, groups_[g], options, param, grad, i, held);
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

const char* TorchStepper::look_at(PyObject* optimizer, TorchGroup& group, PyObject* options,
                                  PyObject* param, PyObject* grad, std::size_t i, Held& held) {
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
        if (const char* why = look_at_states(optimizer, leaf, options, param, held, is_new))
            return why;
    cut_ |= leaf.describe(plan_.items[i], *level_, group, is_new);
    plan_.has_sparse |= plan_.items[i].sparse;
    leaf.occupy(places_, group.has_state);
    return nullptr;
}

const char* TorchStepper::look_at_sparse(TorchGroup& group, TorchLeaf& leaf, PyObject* param,
                                         PyObject* grad, Held& held) {
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

const char* TorchStepper::look_at_states(PyObject* optimizer, TorchLeaf& leaf, PyObject* options,
                                         PyObject* param, Held& held, bool& is_new) {
    PyObject* const slot = rule_ == TorchRule::sgd ? words->momentum_buffer : words->sum;
    PyObject* entries = state_of(param, leaf);
    if (entries && !PyDict_Check(entries)) return "a state that is no dict";
    PyObject* state = entries ? item(entries, slot) : nullptr;
    is_new = rule_ == TorchRule::sgd ? !state || state == Py_None
                                     : !entries || PyDict_GET_SIZE(entries) == 0;
    if (is_new) {
        torch_.note_call();
        entries = held.take(py::handle(optimizer)
                                .attr(words->fresh_state)(py::handle(param), py::handle(options))
                                .release()
                                .ptr());
        state = item(entries, slot);
        held.fresh.push_back({param, entries});
    }
    if (!state) return "a state without its sum";
    held.share(state);
    if (const char* why = leaf.look_at_state(torch_, state)) return why;
    if (rule_ == TorchRule::sgd) return nullptr;
    PyObject* const count = item(entries, words->step);
    if (!count) return "a state without its step";
    return leaf.look_at_count(torch_, held.share(count));
}

// The param's entry in the dict of states, or null. A tensor's hash is a function in Python, so
// the entry is looked for where it stood.
PyObject* TorchStepper::state_of(PyObject* param, TorchLeaf& leaf) {
    Py_ssize_t at = leaf.position;
    PyObject *key = nullptr, *value = nullptr;
    if (PyDict_Next(states_, &at, &key, &value) && key == param) return value;
    torch_.note_call();
    value = item(states_, param);
    if (value && !found_positions_) find_positions();
    return value;
}

void TorchStepper::find_positions() {
    std::unordered_map<PyObject*, Py_ssize_t> positions;
    Py_ssize_t at = 0, before = 0;
    PyObject *key, *value;
    while (PyDict_Next(states_, &at, &key, &value)) {
        positions.emplace(key, before);
        before = at;
    }
    for (std::size_t g = 0; g < groups_.size(); ++g)
        for (std::size_t i = first_[g]; i < first_[g + 1]; ++i) {
            PyObject* const param =
                PyList_GetItem(groups_[g].params(), static_cast<Py_ssize_t>(i - first_[g]));
            if (!param) throw py::error_already_set();
            if (const auto found = positions.find(param); found != positions.end())
                leaves_[i].position = found->second;
        }
    found_positions_ = true;
}

// What a GradScaler has set, for optimizers that are fused. False: leave the step out.
bool TorchStepper::scale(PyObject* dict) {
    PyObject* const found = item(dict, words->found_inf);
    PyObject* const by = item(dict, words->grad_scale);
    double factor = 1;
    if (is_given(found) || is_given(by)) torch_.note_call();
    if (is_given(found) && py::handle(found).attr("item")().cast<double>() != 0) return false;
    if (is_given(by)) factor = 1 / py::handle(by).attr("item")().cast<double>();
    for (TorchGroup& group : groups_) group.options.scale = factor;
    return true;
}

py::object TorchStepper::step(PyObject* optimizer, bool watchable, PyObject* left_out) {
    const py::object dict = attributes(optimizer);
    if (watchable && (torch_.is_watched() || !is_empty(item(dict.ptr(), words->pre_hooks)) ||
                      !is_empty(item(dict.ptr(), words->post_hooks))))
        return py::none();
    const Turn turn(gate_);
    for (int attempt = 0; attempt < attempts; ++attempt) {
        Held held;
        const std::uint64_t calls = torch_.calls();
        collect(optimizer, dict.ptr(), left_out, held);
        if (!refused_.empty()) {
            py::list found;
            for (const Refused& each : refused_)
                found.append(py::make_tuple(each.group, each.index, each.why));
            return found;
        }
        if (!scale(dict.ptr())) return py::bool_(true);
        if (torch_.calls() != calls && !are_still()) continue;
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

void TorchStepper::run(Held& held) {
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
    if (bytes >= long_torch_step) held.hold_memory(torch_);
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
    keep_states(held);
}

// The params of this step, in lists; a group's own where all of it takes part.
std::vector<PyObject*> TorchStepper::stepped(Held& held) const {
    std::vector<PyObject*> lists;
    for (std::size_t g = 0; g < groups_.size(); ++g) {
        const auto first = plan_.items.begin() + static_cast<std::ptrdiff_t>(first_[g]);
        const auto last = plan_.items.begin() + static_cast<std::ptrdiff_t>(first_[g + 1]);
        PyObject* const params = groups_[g].params();
        if (std::all_of(first, last, [](const Item& each) { return each.active; })) {
            lists.push_back(held.share(params));
            continue;
        }
        PyObject* const some = PyList_New(0);
        if (!some) throw py::error_already_set();
        lists.push_back(held.take(some));
        for (auto each = first; each != last; ++each) {
            PyObject* const param = PyList_GetItem(params, each - first);
            if (!param || (each->active && PyList_Append(some, param) != 0))
                throw py::error_already_set();
        }
    }
    return lists;
}

void TorchStepper::keep_states(Held& held) const {
    for (const Held::Fresh& each : held.fresh) {
        py::object entries = py::handle(states_)[py::handle(each.param)];
        if (PyDict_Update(entries.ptr(), each.entries) != 0) throw py::error_already_set();
    }
}

py::list TorchStepper::explain(PyObject* optimizer) {
    const Turn turn(gate_);
    const py::object dict = attributes(optimizer);
    Held held;
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
    PyObject* const list = item(dict.ptr(), words->param_groups);
    if (!list || !PyList_Check(list)) return false;
    const auto groups = py::reinterpret_borrow<py::list>(list);
    for (const py::handle group : groups) {
        const py::object params = group["params"];
        if (!PyList_CheckExact(params.ptr())) return false;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params.ptr()); ++i) {
            const auto param = py::reinterpret_borrow<py::object>(PyList_GET_ITEM(params.ptr(), i));
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

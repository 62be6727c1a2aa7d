#include "torch_states.hpp"

#include "first_use.hpp"
#include "torch_dict.hpp"

namespace thalweg {

namespace {

constinit Word state_word("state"), momentum_buffer("momentum_buffer"), sum("sum"), step("step"),
    fresh_state("_fresh_state");

} // namespace

TorchStates::TorchStates(TorchRule rule, const Torch& torch) : rule_(rule), torch_(torch) {}

void TorchStates::begin(PyObject* optimizer, PyObject* dict, TorchHeld& held) {
    optimizer_ = optimizer;
    given_ = states_ = item(dict, state_word.get());
    if (!states_ || !PyDict_Check(states_))
        throw py::type_error("state: expected a dict, received another");
    held_ = &held;
    held.share(given_);
    states_ = as_it_is(given_, held);
    fresh_.clear();
    found_positions_ = false;
}

const char* TorchStates::look_at(TorchLeaf& leaf, PyObject* param, PyObject* options,
                                 bool& is_new) {
    PyObject* const slot = rule_ == TorchRule::sgd ? momentum_buffer.get() : sum.get();
    PyObject* entries = entries_of(param, leaf);
    if (entries && !PyDict_Check(entries)) return "a state that is no dict";
    if (entries) entries = as_it_is(entries, *held_);
    PyObject* state = entries ? item(entries, slot) : nullptr;
    is_new = rule_ == TorchRule::sgd ? !state || state == Py_None
                                     : !entries || PyDict_GET_SIZE(entries) == 0;
    if (is_new) {
        torch_.note_call();
        entries = held_->take(py::handle(optimizer_)
                                  .attr(fresh_state.get())(py::handle(param), py::handle(options))
                                  .release()
                                  .ptr());
        state = item(entries, slot);
        fresh_.push_back({param, entries});
    }
    if (!state) return "a state without its sum";
    held_->share(state);
    if (const char* why = leaf.look_at_state(torch_, state)) return why;
    if (rule_ == TorchRule::sgd) return nullptr;
    PyObject* const count = item(entries, step.get());
    if (!count) return "a state without its step";
    return leaf.look_at_count(torch_, held_->share(count));
}

// The param's entry in the dict of states, or null. A tensor's hash is a function in Python, so
// the entry is looked for where it stood.
PyObject* TorchStates::entries_of(PyObject* param, TorchLeaf& leaf) {
    Py_ssize_t at = leaf.position;
    PyObject *key = nullptr, *value = nullptr;
    if (PyDict_Next(states_, &at, &key, &value) && key == param) return value;
    if (!found_positions_) find_positions();
    const auto found = positions_.find(param);
    if (found == positions_.end()) return nullptr;
    at = leaf.position = found->second;
    return PyDict_Next(states_, &at, &key, &value) && key == param ? value : nullptr;
}

void TorchStates::find_positions() {
    positions_.clear();
    Py_ssize_t at = 0, before = 0;
    PyObject *key, *value;
    while (PyDict_Next(states_, &at, &key, &value)) {
        positions_.emplace(key, before);
        before = at;
    }
    found_positions_ = true;
}

void TorchStates::keep() const {
    for (const Fresh& each : fresh_) {
        py::object entries = py::handle(given_)[py::handle(each.param)];
        if (PyDict_Update(entries.ptr(), each.entries) != 0) throw py::error_already_set();
    }
}

} // namespace thalweg

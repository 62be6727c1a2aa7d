#include "tree.hpp"

#include <algorithm>

#include "array.hpp"
#include "held.hpp"

namespace thalweg {

namespace {

// The walk is recursive: a deeper structure, or one that contains itself, would exhaust the stack.
constexpr int deepest = 500;

constinit Imported mapping_type("collections.abc", "Mapping");
std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
}

bool is_mapping(PyObject* value) {
    if (PyDict_Check(value)) return true;
    const int answer = PyObject_IsInstance(value, mapping_type.get().ptr());
    if (answer < 0) throw py::error_already_set();
    return answer == 1;
}

// A new reference, or an empty object where the mapping has no such key.
py::object find(PyObject* mapping, PyObject* key) {
    if (PyDict_Check(mapping)) return item_of_dict(mapping, key);
    PyObject* value = PyObject_GetItem(mapping, key);
    if (!value) {
        if (!PyErr_ExceptionMatches(PyExc_KeyError)) throw py::error_already_set();
        PyErr_Clear();
    }
    return py::reinterpret_steal<py::object>(value);
}

} // namespace

Tree::Tree(py::handle spec, std::size_t leaves, std::string path, int depth)
    : path_(std::move(path)) {
    if (depth > deepest)
        throw py::value_error("params: expected nesting of at most " + std::to_string(deepest) +
                              " levels, received more");
    const auto add_child = [&](py::handle child, const std::string& key) {
        children_.push_back(Tree(child, leaves, join(path_, key), depth + 1));
    };
    if (py::isinstance<py::dict>(spec)) {
        kind_ = Kind::mapping;
        for (const py::handle entry : entries(spec)) {
            const auto pair = py::reinterpret_borrow<py::tuple>(entry);
            keys_.push_back(pair[0]);
            add_child(pair[1], py::str(pair[0]));
        }
        py::dict child_of;
        for (std::size_t i = 0; i < keys_.size(); ++i) child_of[keys_[i]] = i;
        child_of_ = std::move(child_of);
    } else if (py::isinstance<py::list>(spec) || py::isinstance<py::tuple>(spec)) {
        kind_ = Kind::sequence;
        for (const py::handle child : py::tuple(py::reinterpret_borrow<py::object>(spec)))
            add_child(child, std::to_string(children_.size()));
    } else {
        leaf_ = spec.cast<std::size_t>();
        if (leaf_ >= leaves) throw py::index_error("tree: a leaf that is not there");
    }
}

void Tree::collect(PyObject* grads, bool partial, const std::vector<bool>& optional,
                   PyObject** found, std::vector<std::size_t>* given) const {
    switch (kind_) {
    case Kind::leaf: return take(grads, found, given);
    case Kind::sequence: return collect_sequence(grads, partial, optional, found, given);
    case Kind::mapping: return collect_mapping(grads, partial, optional, found, given);
    }
}

void Tree::collect_sequence(PyObject* sequence, bool partial, const std::vector<bool>& optional,
                            PyObject** found, std::vector<std::size_t>* given) const {
    if (!PyList_Check(sequence) && !PyTuple_Check(sequence)) refuse_kind(sequence);
    const py::object items = items_of(sequence);
    PyObject* const grads = items.ptr();
    const auto length = [&] { return static_cast<std::size_t>(PySequence_Fast_GET_SIZE(grads)); };
    if (length() != children_.size())
        throw py::value_error(label("grads", path_) + ": expected " +
                              std::to_string(children_.size()) + " items, one for each of " +
                              label("params", path_) + ", received " + std::to_string(length()) +
                              "; None stands for an array without gradient");
    for (std::size_t i = 0; i < children_.size(); ++i) {
        if (i >= length())
            throw py::value_error(label("grads", path_) + ": changed its length while it was read");
        PyObject* item = PySequence_Fast_GET_ITEM(grads, static_cast<Py_ssize_t>(i));
        if (children_[i].kind_ == Kind::leaf) {
            children_[i].take(item, found, given);
        } else {
            const auto held = py::reinterpret_borrow<py::object>(item);
            children_[i].collect(item, partial, optional, found, given);
        }
    }
}

void Tree::collect_mapping(PyObject* grads, bool partial, const std::vector<bool>& optional,
                           PyObject** found, std::vector<std::size_t>* given) const {
    if (!is_mapping(grads)) refuse_kind(grads);
    if (partial && PyDict_Check(grads) &&
        PyDict_GET_SIZE(grads) * 2 < static_cast<Py_ssize_t>(keys_.size()))
        return collect_few(grads, optional, found, given);
    Py_ssize_t known = 0;
    for (std::size_t i = 0; i < keys_.size(); ++i) {
        const py::object item = find(grads, keys_[i].ptr());
        if (item) {
            ++known;
            children_[i].collect(item.ptr(), partial, optional, found, given);
        } else if (!partial && !children_[i].is_optional(optional)) {
            const std::string unknown = unknown_key(grads);
            throw py::value_error(
                label("grads", children_[i].path_) +
                ": expected a gradient, received none: the key is missing" +
                (unknown.empty() ? "; pass partial=True to step only the arrays that have one"
                                 : ", and " + unknown + " is no key of " + label("params", path_)));
        }
    }
    const Py_ssize_t length = PyObject_Size(grads);
    if (length < 0) throw py::error_already_set();
    if (length != known) refuse_unknown(grads);
}

// The same for a dict with few of many keys.
void Tree::collect_few(PyObject* grads, const std::vector<bool>& optional, PyObject** found,
                       std::vector<std::size_t>* given) const {
    // Held, because a key or a mapping below may run code that changes the dict.
    for (const py::handle entry : entries(grads)) {
        PyObject* const key = PyTuple_GET_ITEM(entry.ptr(), 0);
        PyObject* const child = PyDict_GetItemWithError(child_of_.ptr(), key);
        if (!child && PyErr_Occurred()) throw py::error_already_set();
        if (!child) refuse_unknown(grads);
        children_[PyLong_AsSize_t(child)].collect(PyTuple_GET_ITEM(entry.ptr(), 1), true, optional,
                                                  found, given);
    }
}

bool Tree::is_optional(const std::vector<bool>& optional) const {
    if (kind_ == Kind::leaf) return optional[leaf_];
    return std::all_of(children_.begin(), children_.end(),
                       [&](const Tree& child) { return child.is_optional(optional); });
}

void Tree::append(py::handle spec, std::size_t leaves) {
    if (kind_ != Kind::sequence) throw py::value_error("tree: expected a sequence to append to");
    children_.push_back(Tree(spec, leaves, join(path_, std::to_string(children_.size())), 1));
}

void Tree::name_below(const std::string& path) {
    path_ = path;
    for (std::size_t i = 0; i < children_.size(); ++i) {
        const std::string key =
            kind_ == Kind::mapping ? std::string(py::str(keys_[i])) : std::to_string(i);
        children_[i].name_below(join(path_, key));
    }
}

void Tree::refuse_kind(PyObject* grads) const {
    std::string message = label("grads", path_) + ": expected a ";
    message += kind_ == Kind::mapping
                   ? "mapping with the keys " + key_names()
                   : "list or tuple of " + std::to_string(children_.size()) + " items";
    message += ", as " + label("params", path_) + " is, received " + received(grads);
    if (kind_ == Kind::sequence && path_.empty() && is_mapping(grads))
        message += "; with groups, pass a list with one tree for each: [grads]";
    if (PyIter_Check(grads) || PyDictValues_Check(grads)) message += "; pass list(...) of it";
    throw py::type_error(message);
}

// The first key that the params do not have, as Python writes it; "" if there is none.
std::string Tree::unknown_key(PyObject* grads) const {
    const py::list key_list(py::reinterpret_borrow<py::object>(grads));
    for (const py::handle key : key_list)
        if (std::none_of(keys_.begin(), keys_.end(),
                         [&](const py::object& mine) { return mine.equal(key); }))
            return py::repr(key);
    return "";
}

void Tree::refuse_unknown(PyObject* grads) const {
    const std::string key = unknown_key(grads);
    if (key.empty())
        throw py::value_error(label("grads", path_) + ": its length and its keys disagree");
    throw py::value_error(label("grads", path_) + ": expected the keys " + key_names() +
                          ", those of " + label("params", path_) + ", received the unknown key " +
                          key);
}

std::string Tree::key_names() const {
    constexpr std::size_t shown = 8;
    std::string names;
    for (std::size_t i = 0; i < keys_.size() && i < shown; ++i) {
        if (i != 0) names += ", ";
        names += std::string(py::repr(keys_[i]));
    }
    if (keys_.size() > shown) names += ", ... (" + std::to_string(keys_.size()) + " in all)";
    return keys_.empty() ? "of an empty mapping" : names;
}

int Tree::traverse(visitproc visit, void* arg) const {
    for (const py::object& key : keys_) Py_VISIT(key.ptr());
    Py_VISIT(child_of_.ptr());
    for (const Tree& child : children_)
        if (const int stop = child.traverse(visit, arg)) return stop;
    return 0;
}

} // namespace thalweg

#include "watch.hpp"

#include <algorithm>
#include <utility>

#include "held.hpp"
#include "lock.hpp"
#include "overlap.hpp"
#include "rowgrad.hpp"

namespace thalweg {

namespace {

constinit Imported numpy_scalar("numpy", "generic");

bool is_container(PyObject* value) {
    return PyDict_CheckExact(value) || PyList_CheckExact(value) || PyTuple_CheckExact(value);
}

bool is_sequence(PyObject* value, std::size_t length) {
    return (PyList_CheckExact(value) || PyTuple_CheckExact(value)) &&
           static_cast<std::size_t>(Py_SIZE(value)) >= length;
}

// What the container has there; empty if nothing, or if it is another kind.
py::object item_of(PyObject* container, const Tree::Step& step) {
    if (!step.key) {
        const Alone alone(container);
        return py::reinterpret_borrow<py::object>(
            is_sequence(container, step.index + 1)
                ? PySequence_Fast_GET_ITEM(container, static_cast<Py_ssize_t>(step.index))
                : nullptr);
    }
    PyObject* const key = step.key.ptr();
    if (!PyDict_CheckExact(container) || !(PyUnicode_CheckExact(key) || PyLong_CheckExact(key)))
        return {};
    try {
        return item_of_dict(container, key);
    } catch (const py::error_already_set&) { // another key's __eq__
        return {};
    }
}

// The array whose memory a step would touch, or null: a number has none.
PyObject* memory_of(PyObject* value) {
    if (const RowGrad* rows = row_grad_of(value)) value = rows->values.ptr();
    return py::isinstance<py::array>(value) ? value : nullptr;
}

bool is_number(PyObject* value) {
    return PyFloat_Check(value) || is_instance(value, numpy_scalar.get());
}

bool has_other_memory(PyObject* found, PyObject* array) {
    PyObject *const one = memory_of(found), *const other = memory_of(array);
    if (!one) return is_number(found); // what arithmetic makes of a 0-d array
    if (!other) return true;
    const Extent a = extent_of(one), b = extent_of(other);
    if (b.low == b.high) return false; // empty: there is nothing to lose
    return a.low >= b.high || b.low >= a.high;
}

class Flagged {
  public:
    explicit Flagged(bool& flag) : flag_(flag) { flag_ = true; }
    ~Flagged() { flag_ = false; }
    Flagged(const Flagged&) = delete;
    Flagged& operator=(const Flagged&) = delete;

  private:
    bool& flag_;
};

} // namespace

void Watch::add(py::handle root, Tree::Path way, std::vector<PyObject*> arrays) {
    if (looking_ || arrays.empty() || !is_container(root.ptr())) return;
    roots_.push_back({py::reinterpret_borrow<py::object>(root), std::move(way)});
    arrays_ = std::move(arrays);
    flat_ = nullptr;
    seen_.clear();
    steps_left_ = arrays_.size();
}

void Watch::add_copies(const Watch& other, const py::dict& memo, std::vector<PyObject*> arrays) {
    if (looking_ || other.looking_ || other.arrays_.size() != arrays.size()) return;
    for (const Root& root : other.roots_) {
        const auto id = py::reinterpret_steal<py::object>(PyLong_FromVoidPtr(root.container.ptr()));
        if (PyObject* const copy = PyDict_GetItemWithError(memo.ptr(), id.ptr()))
            add(copy, root.way, arrays);
    }
}

void Watch::look_at_all(const Tree& tree, const std::vector<Leaf>& leaves) {
    const Flagged looking(looking_);
    if (is_unchanged()) {
        steps_left_ = arrays_.size();
        return;
    }
    flat_ = nullptr;
    seen_.clear(), items_.clear();
    steps_left_ = 1; // should it be refused
    for (std::size_t i = 0; i < roots_.size();) {
        if (Py_REFCNT(roots_[i].container.ptr()) == 1) {
            let_go(i, tree);
            continue;
        }
        const Tree& below = tree.at(roots_[i].way);
        if (!is_as_it_was(below, roots_[i].container.ptr())) {
            Tree::Path path = roots_[i].way;
            look_for_replaced(below, roots_[i].container, path, leaves);
        }
        ++i;
    }
    for (const Root& root : roots_)
        if (!remember(tree.at(root.way), root.container.ptr())) {
            seen_.clear();
            break;
        }
    if (seen_.size() == 1 &&
        (seen_[0].version != 0 || (PyList_CheckExact(seen_[0].container) && !items_.empty())))
        flat_ = seen_[0].container;
    steps_left_ = roots_.empty() ? never : arrays_.size();
}

bool Watch::is_unchanged() const {
    for (const Root& root : roots_)
        if (Py_REFCNT(root.container.ptr()) == 1) return false;
    for (const Seen& seen : seen_) {
        if (seen.version != 0) {
            if (!PyDict_CheckExact(seen.container) || version_of(seen.container) != seen.version)
                return false;
            continue;
        }
        const Alone alone(seen.container);
        if (!is_sequence(seen.container, seen.size)) return false;
        PyObject* const* const items = PySequence_Fast_ITEMS(seen.container);
        if (static_cast<std::size_t>(Py_SIZE(seen.container)) != seen.size ||
            !std::equal(items, items + seen.size,
                        items_.begin() + static_cast<std::ptrdiff_t>(seen.first)))
            return false;
    }
    return !seen_.empty();
}

// False: the versions of dicts are not known here, or what is in a container may go at any time.
bool Watch::remember(const Tree& tree, PyObject* here) {
    if (tree.is_leaf() || !is_container(here)) return true;
    if (PyDict_CheckExact(here)) {
        seen_.push_back({here, version_of(here), 0, 0});
        if (seen_.back().version == 0) return false;
    } else {
        const Alone alone(here);
        PyObject* const* const items = PySequence_Fast_ITEMS(here);
        seen_.push_back({here, 0, items_.size(), static_cast<std::size_t>(Py_SIZE(here))});
        items_.insert(items_.end(), items, items + Py_SIZE(here));
    }
    for (std::size_t i = 0; i < tree.size(); ++i) {
        if (tree[i].is_leaf()) continue;
#ifdef Py_GIL_DISABLED
        return false;
#else
        const py::object child = item_of(here, tree.step(i));
        if (child && !remember(tree[i], child.ptr())) return false;
#endif
    }
    return true;
}

// In its place come the containers that it held.
void Watch::let_go(std::size_t root, const Tree& tree) {
    std::vector<Root> roots;
    for (std::size_t i = 0; i < roots_.size(); ++i)
        if (i != root) roots.push_back(roots_[i]);
    const Root& gone = roots_[root];
    const Tree& below = tree.at(gone.way);
    for (std::size_t i = 0; i < below.size(); ++i) {
        const Tree::Step step = below.step(i);
        const py::object child = item_of(gone.container.ptr(), step);
        if (!child || !is_container(child.ptr())) continue;
        roots.push_back({child, gone.way});
        roots.back().way.push_back(step);
    }
    std::swap(roots, roots_);
}

// Every array at its place: false is not certain. Runs no code of the caller's, and asks a dict for
// no key: what was put there in another order, or is of other kinds, is left to look_for_replaced.
bool Watch::is_as_it_was(const Tree& tree, PyObject* here) const {
    if (tree.is_leaf()) return here == array_of(tree) || !array_of(tree);
    if (!is_container(here)) return false;
    const Alone alone(here);
    const auto is_child_as_it_was = [&](const Tree& child, PyObject* there) {
        if (child.is_leaf()) return is_as_it_was(child, there);
        return is_as_it_was(child, py::reinterpret_borrow<py::object>(there).ptr()); // held
    };
    const std::size_t size = tree.size();
    if (!PyDict_CheckExact(here)) {
        if (tree.is_keyed() || !is_sequence(here, size)) return false;
        for (std::size_t i = 0; i < size; ++i)
            if (!is_sequence(here, size) ||
                !is_child_as_it_was(tree[i],
                                    PySequence_Fast_GET_ITEM(here, static_cast<Py_ssize_t>(i))))
                return false;
        return true;
    }
    PyObject* value = nullptr;
    Py_ssize_t position = 0;
    for (std::size_t i = 0; i < size; ++i)
        if (!PyDict_Next(here, &position, nullptr, &value) || !is_child_as_it_was(tree[i], value))
            return false;
    return tree.is_keyed();
}

void Watch::look_for_replaced(const Tree& tree, const py::object& here, Tree::Path& path,
                              const std::vector<Leaf>& leaves) const {
    if (tree.is_leaf()) {
        PyObject* const array = array_of(tree);
        if (array && here.ptr() != array && has_other_memory(here.ptr(), array))
            refuse(path, leaves[tree.leaf()], here.ptr());
        return;
    }
    for (std::size_t i = 0; i < tree.size(); ++i) {
        path.push_back(tree.step(i));
        if (const py::object item = item_of(here.ptr(), path.back()))
            look_for_replaced(tree[i], item, path, leaves);
        path.pop_back();
    }
}

void Watch::refuse(const Tree::Path& path, const Leaf& leaf, PyObject* found) const {
    std::string subscripts;
    for (const Tree::Step& step : path)
        subscripts.append("[")
            .append(std::string(py::repr(step.key ? step.key : py::int_(step.index))))
            .append("]");
    std::string message;
    if (kind_ == Kind::params)
        message = label("params", leaf.path) +
                  ": expected the array that the optimizer steps, received another in its place, " +
                  received(found) +
                  "; steps do not reach it: write into the array instead, opt.params" + subscripts +
                  "[...] = new, or give the optimizer the new one: opt.replace(name, array)";
    else
        message = label("grads", leaf.path) +
                  ": expected the buffer that was bound, received another in its place, " +
                  received(found) +
                  "; step() does not read it: write into the buffer instead, grads" + subscripts +
                  "[...] = new, or pass the gradients to each step of an optimizer without bound "
                  "ones";
    message += "; if it is replaced on purpose, pass watch=False when the optimizer is made";
    PyErr_SetString(PyExc_RuntimeError, message.c_str());
    throw py::error_already_set();
}

int Watch::traverse(visitproc visit, void* arg) const {
    for (const Root& root : roots_) {
        Py_VISIT(root.container.ptr());
        for (const Tree::Step& step : root.way) Py_VISIT(step.key.ptr());
    }
    return 0;
}

void Watch::clear() {
    steps_left_ = never;
    flat_ = nullptr;
    seen_.clear();
    const auto gone = std::exchange(roots_, {});
}

} // namespace thalweg

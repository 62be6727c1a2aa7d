// The caller's containers, and whether the arrays are still at their places in them: one put in
// another's place would leave the optimizer with an array that nobody reads.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "leaf.hpp"
#include "lock.hpp"
#include "tree.hpp"

namespace thalweg {

// What a dict changes with every change of its own; 0 where CPython has no such thing.
inline std::uint64_t version_of([[maybe_unused]] PyObject* dict) {
#if PY_VERSION_HEX < 0x030D0000 && !defined(PYPY_VERSION)
    PYBIND11_WARNING_PUSH
    PYBIND11_WARNING_DISABLE_GCC("-Wdeprecated-declarations")
    PYBIND11_WARNING_DISABLE_CLANG("-Wdeprecated-declarations")
    PYBIND11_WARNING_DISABLE_MSVC(4996)
    return reinterpret_cast<PyDictObject*>(dict)->ma_version_tag;
    PYBIND11_WARNING_POP
#else
    return 0;
#endif
}

class Watch {
  public:
    enum class Kind { params, grads };
    explicit Watch(Kind kind) : kind_(kind) {}

    // Watches what is below `root`, the container of the part of the tree that `way` leads to, with
    // these arrays by leaf, null where there is none. Only exact dicts and lists, and tuples on the
    // way to one, are looked into. `root` is held until nobody else holds it; the containers in it
    // are watched on.
    void add(py::handle root, Tree::Path way, std::vector<PyObject*> arrays);
    // The same for the copies of another's containers that copy.deepcopy has noted.
    void add_copies(const Watch& other, const py::dict& memo, std::vector<PyObject*> arrays);

    // Another array belongs at the place of this leaf from now on: the next step looks for it.
    void replace(std::size_t leaf, PyObject* array) noexcept {
        if (leaf >= arrays_.size()) return;
        arrays_[leaf] = array;
        flat_ = nullptr;
        seen_.clear();
        steps_left_ = roots_.empty() ? never : 1;
    }

    // To be called at each step: as many looks as there are arrays are one look at all of them in
    // as many steps. RuntimeError if another array with other memory is at the place of one; then
    // the next step looks again.
    void look(const Tree& tree, const std::vector<Leaf>& leaves) {
        if (flat_ ? !is_flat_unchanged() : --steps_left_ == 0) look_at_all(tree, leaves);
    }
    bool is_empty() const { return roots_.empty(); }

    int traverse(visitproc visit, void* arg) const;
    void clear();

  private:
    struct Root {
        py::object container;
        Tree::Path way;
    };
    PyObject* array_of(const Tree& leaf) const {
        return leaf.leaf() < arrays_.size() ? arrays_[leaf.leaf()] : nullptr;
    }
    void look_at_all(const Tree& tree, const std::vector<Leaf>& leaves);
    void let_go(std::size_t root, const Tree& tree);
    // One dict, or one item of one list: a look at all of them costs a small model a branch that no
    // CPU foresees, 15 ns a step.
    bool is_flat_unchanged() {
        if (Py_REFCNT(flat_) == 1) return false;
        if (items_.empty()) return version_of(flat_) == seen_[0].version;
        PyObject* const list = flat_; // a root, which stays
        const Alone alone(list);
        if (static_cast<std::size_t>(Py_SIZE(list)) != items_.size()) return false;
        next_ = next_ + 1 < items_.size() ? next_ + 1 : 0;
        return PyList_GET_ITEM(list, static_cast<Py_ssize_t>(next_)) == items_[next_];
    }
    bool is_unchanged() const;
    bool is_as_it_was(const Tree& tree, PyObject* here) const;
    bool remember(const Tree& tree, PyObject* here);
    void look_for_replaced(const Tree& tree, const py::object& here, Tree::Path& path,
                           const std::vector<Leaf>& leaves) const;
    [[noreturn]] void refuse(const Tree::Path& path, const Leaf& leaf, PyObject* found) const;

    static constexpr std::size_t never = std::numeric_limits<std::size_t>::max();
    Kind kind_;
    std::vector<Root> roots_;
    std::vector<PyObject*> arrays_; // the optimizer's, which holds them
    // The containers at the last look, outer ones first, and what was in the lists: while none has
    // changed, neither has what they hold, and all of it is alive.
    struct Seen {
        PyObject* container;
        std::uint64_t version;   // of a dict; of a list 0
        std::size_t first, size; // in items_
    };
    std::vector<Seen> seen_;
    std::vector<PyObject*> items_;
    PyObject* flat_ = nullptr; // the only container, once seen
    std::size_t next_ = 0;     // of items_
    std::size_t steps_left_ = never;
    bool looking_ = false; // the caller's code may run: a key's __eq__
};

} // namespace thalweg

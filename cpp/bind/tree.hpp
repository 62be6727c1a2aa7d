// The structure of the params: a tree of sequences and mappings with arrays as leaves, and the walk
// that finds the gradients in a structure of the same form.
#pragma once
#include <pybind11/pybind11.h>

#include <cstddef>
#include <string>
#include <vector>

namespace thalweg {

namespace py = pybind11;

class Tree {
  public:
    Tree() = default;
    // int: a leaf, by its index below `leaves`; list: a sequence; dict: a mapping.
    Tree(py::handle spec, std::size_t leaves) : Tree(spec, leaves, "", 0) {}

    // Puts a new reference to the gradient of leaf i in found[i], null where there is none. Runs
    // the caller's code if a mapping is not a dict, so nothing seen before it may be trusted after
    // it.
    // A key may be missing if partial, or if all leaves below it are optional. The leaves that were
    // found are put behind those in `given`, if it is not null.
    void collect(PyObject* grads, bool partial, const std::vector<bool>& optional, PyObject** found,
                 std::vector<std::size_t>* given = nullptr) const;
    // Puts one more tree behind the others of a sequence, and takes it away again.
    void append(py::handle spec, std::size_t leaves);
    void drop_last() { children_.pop_back(); }
    // Where it stands among other trees, for messages.
    void name_below(const std::string& path);

    // The way to a child: in a mapping by key, in a sequence by index.
    struct Step {
        py::object key; // empty: a sequence
        std::size_t index = 0;
    };
    using Path = std::vector<Step>;
    bool is_leaf() const { return kind_ == Kind::leaf; }
    bool is_keyed() const { return kind_ == Kind::mapping; }
    std::size_t leaf() const { return leaf_; }
    std::size_t size() const { return children_.size(); }
    const Tree& operator[](std::size_t i) const { return children_[i]; }
    Step step(std::size_t i) const { return {is_keyed() ? keys_[i] : py::object(), i}; }
    const Tree& at(const Path& path) const {
        const Tree* here = this;
        for (const Step& step : path) here = &here->children_.at(step.index);
        return *here;
    }

    int traverse(visitproc visit, void* arg) const;

  private:
    enum class Kind { leaf, sequence, mapping };
    Tree(py::handle spec, std::size_t leaves, std::string path, int depth);
    // Of a leaf.
    void take(PyObject* grad, PyObject** found, std::vector<std::size_t>* given) const {
        if (grad == Py_None) return;
        if (given) given->push_back(leaf_);
        Py_XSETREF(found[leaf_], Py_NewRef(grad));
    }
    void collect_sequence(PyObject* grads, bool partial, const std::vector<bool>& optional,
                          PyObject** found, std::vector<std::size_t>* given) const;
    void collect_mapping(PyObject* grads, bool partial, const std::vector<bool>& optional,
                         PyObject** found, std::vector<std::size_t>* given) const;
    void collect_few(PyObject* grads, const std::vector<bool>& optional, PyObject** found,
                     std::vector<std::size_t>* given) const;
    bool is_optional(const std::vector<bool>& optional) const;
    [[noreturn]] void refuse_kind(PyObject* grads) const;
    [[noreturn]] void refuse_unknown(PyObject* grads) const;
    std::string unknown_key(PyObject* grads) const;
    std::string key_names() const;

    Kind kind_ = Kind::leaf;
    std::size_t leaf_ = 0;
    std::string path_;
    std::vector<py::object> keys_;
    py::object child_of_; // of a mapping: a dict from keys to children
    std::vector<Tree> children_;
};

} // namespace thalweg

#include "judge.hpp"

#include <string>

namespace thalweg {

namespace {

// [0, 3]: where element `index` in C order is.
std::string position_text(const std::vector<std::ptrdiff_t>& shape, std::size_t index) {
    std::string text;
    for (std::size_t i = shape.size(); i-- > 0;) {
        const auto length = static_cast<std::size_t>(shape[i]);
        text = std::to_string(index % length) + (text.empty() ? "" : ", ") + text;
        index /= length;
    }
    return "[" + text + "]";
}

} // namespace

OnNonfinite nonfinite_called(py::handle word) {
    for (int i = 0; i < 3; ++i)
        if (PyUnicode_Check(word.ptr()) &&
            PyUnicode_CompareWithASCIIString(word.ptr(), nonfinite_names[i]) == 0)
            return static_cast<OnNonfinite>(i);
    throw py::value_error("on_nonfinite: expected propagate, skip or raise, received " +
                          std::string(py::repr(word)));
}

void refuse_nonfinite(Parts parts, std::span<const std::vector<Leaf>* const> leaves,
                      const char* what) {
    const auto leaf = [&](std::size_t p, std::size_t i) -> const Leaf& { return (*leaves[p])[i]; };
    refuse_nonfinite(
        parts, what, [&](std::size_t p, std::size_t i) { return label(what, leaf(p, i).path); },
        [&](std::size_t p, std::size_t i) {
            const auto& a = fields(leaf(p, i).param.ptr());
            return std::vector<std::ptrdiff_t>(a.dimensions, a.dimensions + a.nd);
        });
}

void refuse_nonfinite(Parts parts, const char* what, const NameOf& name_of,
                      const ShapeOf& shape_of) {
    std::string message;
    bool overflown = false;
    for (std::size_t p = 0; p < parts.size(); ++p) {
        if (!parts[p].refused) continue;
        const Plan& plan = *parts[p].plan;
        const auto add = [&](std::size_t i, const std::string& words, std::size_t first) {
            if (!message.empty()) message += "; ";
            message += name_of(p, i) + ": expected " + words + ", the first at " +
                       position_text(shape_of(p, i), plan.element(i, first));
        };
        for (std::size_t i = 0; i < plan.items.size(); ++i) {
            const Item& item = plan.items[i];
            if (!item.active) continue;
            const Measured found = plan.measured(i);
            if (found.nans + found.infinities != 0)
                add(i,
                    "finite elements, received " + std::to_string(found.nans) + " NaN and " +
                        std::to_string(found.infinities) + " inf",
                    found.first);
            const Overflown squares = plan.overflown(i);
            if (squares.count == 0) continue;
            overflown = true;
            add(i,
                std::string(item.by_row ? "rows whose mean square" : "elements whose square") +
                    " is finite in " + (item.dtype == Dtype::float32 ? "float32" : "float64") +
                    ", received " + std::to_string(squares.count) + " that overflow",
                squares.first);
        }
    }
    if (overflown)
        message += "; max_norm or max_value clips them, scale makes them smaller";
    else if (message.empty())
        message = std::string(what) +
                  ": expected a global norm that float64 can hold, received one that overflows "
                  "although every element is finite; max_value clips the elements, scale makes "
                  "them smaller";
    message += "; nothing has changed; on_nonfinite=\"skip\" leaves such steps out";
    PyErr_SetString(PyExc_FloatingPointError, message.c_str());
    throw py::error_already_set();
}

} // namespace thalweg

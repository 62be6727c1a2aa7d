// What a step decides about gradients that are not finite, in Python's words.
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "leaf.hpp"
#include "step/decision.hpp"

namespace thalweg {

constexpr const char* nonfinite_names[] = {"propagate", "skip", "raise"};

// The one called so; ValueError for another word.
OnNonfinite nonfinite_called(py::handle word);

// FloatingPointError, naming each gradient of the refused parts that was found not to be finite, or
// whose square is not; `leaves` are those of each part, `what` is what their gradients are called.
[[noreturn]] void refuse_nonfinite(Parts parts, std::span<const std::vector<Leaf>* const> leaves,
                                   const char* what);
// The same for gradients that are no NumPy arrays: how that of a part's item is called, and its
// shape.
using NameOf = std::function<std::string(std::size_t part, std::size_t item)>;
using ShapeOf = std::function<std::vector<std::ptrdiff_t>(std::size_t part, std::size_t item)>;
[[noreturn]] void refuse_nonfinite(Parts parts, const char* what, const NameOf& name_of,
                                   const ShapeOf& shape_of);

} // namespace thalweg

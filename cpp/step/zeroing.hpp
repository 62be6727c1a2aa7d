// A gradient zeroed where it lies, box by box, once its box has been used.
#pragma once
#include "kernel/contract.hpp"

namespace thalweg {

void zero_gradient(const Box& box);
// Of the rows `first` to `last`: every place in the gradient that was summed for them.
void zero_gradient(const RowBox& box);

} // namespace thalweg

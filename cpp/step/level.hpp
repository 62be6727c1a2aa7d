// The ISA levels this build holds, and the one that this machine runs.
#pragma once
#include <string>
#include <vector>

#include "kernel/contract.hpp"

namespace thalweg {

// Lowest first.
const std::vector<const Level*>& compiled_levels();
const std::vector<const Level*>& supported_levels();

// The level called `name`; throws std::invalid_argument naming what there is, if this machine or
// this build has no such level. An empty name is the highest supported level.
const Level& find_level(const std::string& name);

const Kernel* find_kernel(const Level& level, const std::string& name);

} // namespace thalweg

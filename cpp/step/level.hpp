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

// The level of what has none of its own: the highest supported one until another is chosen.
const Level& level_in_use();
void use_level(const Level& level);

const Kernel* find_kernel(const Level& level, const std::string& name);

} // namespace thalweg

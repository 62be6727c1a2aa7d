#include "level.hpp"

#include <stdexcept>

#if defined(_MSC_VER) && defined(_M_X64)
#include <immintrin.h>
#include <intrin.h>
#endif

namespace thalweg {

namespace baseline {
extern const Level level;
}
#ifdef THALWEG_X86
namespace avx2 {
extern const Level level;
}
namespace avx512 {
extern const Level level;
}

namespace {

// The psABI levels v3 and v4, feature by feature: what the compiler may use, the machine must have.
#ifdef _MSC_VER
bool has_bits(unsigned value, unsigned bits) { return (value & bits) == bits; }
bool runs(bool wide) {
    int leaf[4];
    __cpuidex(leaf, 0, 0);
    if (leaf[0] < 7) return false;
    __cpuidex(leaf, 1, 0);
    const auto features = static_cast<unsigned>(leaf[2]);
    // FMA, MOVBE, OSXSAVE, AVX, F16C
    if (!has_bits(features, 1U << 12 | 1U << 22 | 1U << 27 | 1U << 28 | 1U << 29)) return false;
    const auto saved = static_cast<unsigned>(_xgetbv(0));
    if (!has_bits(saved, wide ? 0xe6U : 0x6U)) return false;
    __cpuidex(leaf, 7, 0);
    const auto extended = static_cast<unsigned>(leaf[1]);
    // BMI1, AVX2, BMI2; AVX512 F, DQ, CD, BW, VL
    if (!has_bits(extended, 1U << 3 | 1U << 5 | 1U << 8)) return false;
    return !wide || has_bits(extended, 1U << 16 | 1U << 17 | 1U << 28 | 1U << 30 | 1U << 31);
}
bool runs_avx2() { return runs(false); }
bool runs_avx512() { return runs(true); }
#else
bool runs_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi") &&
           __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("lzcnt") &&
           __builtin_cpu_supports("movbe");
}
bool runs_avx512() {
    return runs_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

} // namespace
#endif

const std::vector<const Level*>& compiled_levels() {
    static const std::vector<const Level*> levels = {
        &baseline::level,
#ifdef THALWEG_X86
        &avx2::level,
        &avx512::level,
#endif
    };
    return levels;
}

const std::vector<const Level*>& supported_levels() {
    static const std::vector<const Level*> levels = [] {
        std::vector<const Level*> found = {&baseline::level};
#ifdef THALWEG_X86
        if (runs_avx2()) found.push_back(&avx2::level);
        if (runs_avx512()) found.push_back(&avx512::level);
#endif
        return found;
    }();
    return levels;
}

const Level& find_level(const std::string& name) {
    if (name.empty()) return *supported_levels().back();
    std::string names;
    for (const Level* level : supported_levels()) {
        if (name == level->name) return *level;
        names += (names.empty() ? "" : ", ") + std::string(level->name);
    }
    for (const Level* level : compiled_levels())
        if (name == level->name)
            throw std::invalid_argument("this CPU does not run the ISA level " + name +
                                        "; it runs: " + names);
    throw std::invalid_argument("unknown ISA level '" + name + "'; this CPU runs: " + names);
}

const Kernel* find_kernel(const Level& level, const std::string& name) {
    for (std::size_t i = 0; i < kernel_count; ++i)
        if (name == level.kernels[i].name) return &level.kernels[i];
    return nullptr;
}

} // namespace thalweg

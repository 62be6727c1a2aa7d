#include "level.hpp"

#include <atomic>
#include <stdexcept>

#if defined(_MSC_VER) && defined(_M_X64)
#include <cstring>
#include <immintrin.h>
#include <intrin.h>
#elif defined(__x86_64__)
#include <cpuid.h>
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
// CPUID itself, because compilers differ in the names they know.
struct Registers {
    unsigned a, b, c, d;
};

Registers cpuid(unsigned leaf) {
    Registers r;
#ifdef _MSC_VER
    int words[4];
    __cpuidex(words, static_cast<int>(leaf), 0);
    std::memcpy(&r, words, sizeof r);
#else
    __cpuid_count(leaf, 0, r.a, r.b, r.c, r.d);
#endif
    return r;
}

// The registers that the operating system saves.
unsigned saved_registers() {
#ifdef _MSC_VER
    return static_cast<unsigned>(_xgetbv(0));
#else
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

bool has_bits(unsigned value, unsigned bits) { return (value & bits) == bits; }

bool runs(bool wide) {
    if (cpuid(0).a < 7 || cpuid(0x80000000U).a < 0x80000001U) return false;
    // FMA, MOVBE, OSXSAVE, AVX, F16C; then LZCNT
    if (!has_bits(cpuid(1).c, 1U << 12 | 1U << 22 | 1U << 27 | 1U << 28 | 1U << 29)) return false;
    if (!has_bits(cpuid(0x80000001U).c, 1U << 5)) return false;
    if (!has_bits(saved_registers(), wide ? 0xe6U : 0x6U)) return false;
    // BMI1, AVX2, BMI2; AVX512 F, DQ, CD, BW, VL
    const unsigned extended = cpuid(7).b;
    if (!has_bits(extended, 1U << 3 | 1U << 5 | 1U << 8)) return false;
    return !wide || has_bits(extended, 1U << 16 | 1U << 17 | 1U << 28 | 1U << 30 | 1U << 31);
}
bool runs_avx2() { return runs(false); }
bool runs_avx512() { return runs(true); }

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
        if (!names.empty()) names += ", ";
        names += level->name;
    }
    for (const Level* level : compiled_levels())
        if (name == level->name)
            throw std::invalid_argument("this CPU does not run the ISA level " + name +
                                        "; it runs: " + names);
    throw std::invalid_argument("unknown ISA level '" + name + "'; this CPU runs: " + names);
}

namespace {
std::atomic<const Level*> in_use = nullptr;
}

const Level& level_in_use() {
    const Level* level = in_use.load(std::memory_order_relaxed);
    return level ? *level : *supported_levels().back();
}

void use_level(const Level& level) { in_use.store(&level, std::memory_order_relaxed); }

const Kernel* find_kernel(const Level& level, const std::string& name) {
    for (std::size_t i = 0; i < kernel_count; ++i)
        if (name == level.kernels[i].name) return &level.kernels[i];
    return nullptr;
}

} // namespace thalweg

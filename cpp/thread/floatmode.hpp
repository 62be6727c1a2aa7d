// Runs a scope in the default floating-point mode (round to nearest, subnormals kept, no traps)
// and puts the thread's own mode back. A caller may have set FTZ/DAZ: the formulas hold all the
// same.
#pragma once
#include <cstdint>

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
#elif defined(_M_ARM64) && !defined(__aarch64__)
#include <intrin.h>
#endif

namespace thalweg {

class DefaultFloatMode {
  public:
    DefaultFloatMode() : saved_(get()) {
        if ((saved_ & control) != usual) set(usual);
    }
    ~DefaultFloatMode() {
        if ((saved_ & control) != usual) set(saved_);
    }
    DefaultFloatMode(const DefaultFloatMode&) = delete;
    DefaultFloatMode& operator=(const DefaultFloatMode&) = delete;

  private:
#if defined(__SSE2__) || defined(_M_X64)
    using Word = unsigned;
    static constexpr Word control = 0xffc0U; // all but the sticky exception flags
    static constexpr Word usual = 0x1f80U;
    static Word get() { return _mm_getcsr(); }
    static void set(Word word) { _mm_setcsr(word); }
#elif defined(__aarch64__)
    using Word = std::uint64_t;
    static constexpr Word control = ~Word{0};
    static constexpr Word usual = 0;
    static Word get() {
        Word word;
        asm volatile("mrs %0, fpcr" : "=r"(word));
        return word;
    }
    static void set(Word word) { asm volatile("msr fpcr, %0" : : "r"(word)); }
#elif defined(_M_ARM64)
    using Word = std::uint64_t;
    static constexpr Word control = ~Word{0};
    static constexpr Word usual = 0;
    static constexpr int fpcr = ARM64_SYSREG(3, 3, 4, 4, 0);
    static Word get() { return static_cast<Word>(_ReadStatusReg(fpcr)); }
    static void set(Word word) { _WriteStatusReg(fpcr, static_cast<__int64>(word)); }
#else
#error "thalweg is written for x86-64 and AArch64"
#endif
    Word saved_;
};

// A number that the compiler neither uses before the mode is set nor computes once it is put back:
// to it, arithmetic has nothing to do with the mode.
inline double settled(double x) {
    const volatile double here = x;
    return here;
}

} // namespace thalweg

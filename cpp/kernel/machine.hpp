// What a machine and its compiler must be for the bits to be the formula's, and the compiler's own
// words for what C++ has none.
#pragma once
#include <cfloat>

#if defined(__i386__) || defined(_M_IX86)
#error "thalweg is written for 64-bit x86: the x87 unit of 32-bit x86 rounds to its own precision"
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "thalweg is written for little-endian machines: it reads the bits of float16 as they lie"
#endif
static_assert(FLT_EVAL_METHOD == 0, "every operator must round to its own type: not on x87");

#if defined(_MSC_VER) && !defined(__clang__)
#pragma fp_contract(off)
#endif

#ifdef __GNUC__
#define THALWEG_INLINE [[gnu::always_inline]] inline
#define THALWEG_NOINLINE [[gnu::noinline]]
#elif defined(_MSC_VER)
#define THALWEG_INLINE __forceinline
#define THALWEG_NOINLINE __declspec(noinline)
#else
#define THALWEG_INLINE inline
#define THALWEG_NOINLINE
#endif

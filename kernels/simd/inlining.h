// How inner loops are unrolled and inlined: wholly, so that sums stay in registers. Not under sanitizers,
// whose checks in the expanded code would take GCC ten minutes a file, nor where instructions are emulated;
// these check the same loops, rolled.
#pragma once

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(TERRACE_EMULATED_AVX512)
#define TERRACE_UNROLL(count)
#define TERRACE_INLINE
#else
#define TERRACE_PRAGMA(text) _Pragma(#text)
#define TERRACE_UNROLL(count) TERRACE_PRAGMA(GCC unroll count)
#define TERRACE_INLINE __attribute__((always_inline))
#endif

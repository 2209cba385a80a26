// wgmma.mma_async of bf16 (PTX ISA, "Asynchronous warpgroup-level matrix instructions"): an instruction names
// each register of its accumulator, so there is one text for each width. Included by warpgroup_cuda.h alone.
#pragma once

#include <cstdint>

// clang-format off
#define TERRACE_OUT8(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define TERRACE_OUT16(d, i) TERRACE_OUT8(d, i), TERRACE_OUT8(d, i + 4)
#define TERRACE_OUT32(d, i) TERRACE_OUT16(d, i), TERRACE_OUT16(d, i + 8)
#define TERRACE_OUT64(d, i) TERRACE_OUT32(d, i), TERRACE_OUT32(d, i + 16)
#define TERRACE_OUT96(d, i) TERRACE_OUT64(d, i), TERRACE_OUT32(d, i + 32)
#define TERRACE_OUT128(d, i) TERRACE_OUT64(d, i), TERRACE_OUT64(d, i + 32)
#define TERRACE_OUT192(d, i) TERRACE_OUT128(d, i), TERRACE_OUT64(d, i + 64)
#define TERRACE_OUT256(d, i) TERRACE_OUT128(d, i), TERRACE_OUT128(d, i + 64)
#define TERRACE_REGISTERS8 \
  "%0,%1,%2,%3"
#define TERRACE_REGISTERS16 \
  "%0,%1,%2,%3,%4,%5,%6,%7"
#define TERRACE_REGISTERS32 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define TERRACE_REGISTERS64 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31"
#define TERRACE_REGISTERS96 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define TERRACE_REGISTERS128 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define TERRACE_REGISTERS192 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70," \
  "%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93," \
  "%94,%95"
#define TERRACE_REGISTERS256 \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24," \
  "%25,%26,%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
  "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70," \
  "%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93," \
  "%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112," \
  "%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

// D: registers; A: operand of A; then of B, of whether it adds, of the transposition of B.
#define TERRACE_WGMMA(N, A, B, ADDS, TRANSPOSE)                                                                  \
  "{\n.reg .pred p;\nsetp.ne.b32 p, " ADDS ", 0;\n"                                                              \
  "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" TERRACE_REGISTERS##N "}, " A ", " B ", p, 1, 1, " \
  TRANSPOSE ";\n}\n"

namespace terrace::simt {

template <uint32_t kN, bool kTransposeB>
__device__ __forceinline__ void WgmmaOfRegisters(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b, int32_t adds) {
  if constexpr (kN == 8) {
    asm volatile(TERRACE_WGMMA(8, "{%4,%5,%6,%7}", "%8", "%9", "%10")
                 : TERRACE_OUT8(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 16) {
    asm volatile(TERRACE_WGMMA(16, "{%8,%9,%10,%11}", "%12", "%13", "%14")
                 : TERRACE_OUT16(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 32) {
    asm volatile(TERRACE_WGMMA(32, "{%16,%17,%18,%19}", "%20", "%21", "%22")
                 : TERRACE_OUT32(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 64) {
    asm volatile(TERRACE_WGMMA(64, "{%32,%33,%34,%35}", "%36", "%37", "%38")
                 : TERRACE_OUT64(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 96) {
    asm volatile(TERRACE_WGMMA(96, "{%48,%49,%50,%51}", "%52", "%53", "%54")
                 : TERRACE_OUT96(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 128) {
    asm volatile(TERRACE_WGMMA(128, "{%64,%65,%66,%67}", "%68", "%69", "%70")
                 : TERRACE_OUT128(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 192) {
    asm volatile(TERRACE_WGMMA(192, "{%96,%97,%98,%99}", "%100", "%101", "%102")
                 : TERRACE_OUT192(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 256) {
    asm volatile(TERRACE_WGMMA(256, "{%128,%129,%130,%131}", "%132", "%133", "%134")
                 : TERRACE_OUT256(d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else {
    static_assert(kN == 0, "no wgmma of this width");
  }
}

template <uint32_t kN, bool kTransposeB>
__device__ __forceinline__ void WgmmaOfShared(float (&d)[kN / 2], uint64_t a, uint64_t b, int32_t adds) {
  if constexpr (kN == 8) {
    asm volatile(TERRACE_WGMMA(8, "%4", "%5", "%6", "0, %7")
                 : TERRACE_OUT8(d, 0)
                 : "l"(a), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 16) {
    asm volatile(TERRACE_WGMMA(16, "%8", "%9", "%10", "0, %11")
                 : TERRACE_OUT16(d, 0)
                 : "l"(a), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 32) {
    asm volatile(TERRACE_WGMMA(32, "%16", "%17", "%18", "0, %19")
                 : TERRACE_OUT32(d, 0)
                 : "l"(a), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 64) {
    asm volatile(TERRACE_WGMMA(64, "%32", "%33", "%34", "0, %35")
                 : TERRACE_OUT64(d, 0)
                 : "l"(a), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 96) {
    asm volatile(TERRACE_WGMMA(96, "%48", "%49", "%50", "0, %51")
                 : TERRACE_OUT96(d, 0)
                 : "l"(a), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 128) {
    asm volatile(TERRACE_WGMMA(128, "%64", "%65", "%66", "0, %67")
                 : TERRACE_OUT128(d, 0)
                 : "l"(a), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 192) {
    asm volatile(TERRACE_WGMMA(192, "%96", "%97", "%98", "0, %99")
                 : TERRACE_OUT192(d, 0)
                 : "l"(a), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else if constexpr (kN == 256) {
    asm volatile(TERRACE_WGMMA(256, "%128", "%129", "%130", "0, %131")
                 : TERRACE_OUT256(d, 0)
                 : "l"(a), "l"(b), "r"(adds), "n"(kTransposeB ? 1 : 0));
  } else {
    static_assert(kN == 0, "no wgmma of this width");
  }
}

}  // namespace terrace::simt

#undef TERRACE_WGMMA
#undef TERRACE_REGISTERS8
#undef TERRACE_REGISTERS16
#undef TERRACE_REGISTERS32
#undef TERRACE_REGISTERS64
#undef TERRACE_REGISTERS96
#undef TERRACE_REGISTERS128
#undef TERRACE_REGISTERS192
#undef TERRACE_REGISTERS256
#undef TERRACE_OUT8
#undef TERRACE_OUT16
#undef TERRACE_OUT32
#undef TERRACE_OUT64
#undef TERRACE_OUT96
#undef TERRACE_OUT128
#undef TERRACE_OUT192
#undef TERRACE_OUT256
// clang-format on

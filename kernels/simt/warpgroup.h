// What Hopper (sm_90a) adds to simt.h: products of a warpgroup (four warps, the first of which has a multiple
// of four as its number) whose operands lie in shared memory, barriers in shared memory, copies that report
// to them. simt_emulated.h's promises hold: a product happens when it is waited for, no earlier, and until
// then its accumulators are NaNs; a bulk copy happens when its barrier is waited for.
//
// Offered in namespace terrace::simt beside what simt.h has:
//   kHasWarpgroups   of the architecture being compiled for; a kernel's body is `if constexpr` of it
//   SharedTile(shared, stride, leading)   describes a matrix in shared memory for Wgmma, see below
//   Wgmma<kN>(d, a, b, adds)   d[64, kN] (+)= a[64, 16] * b[16, kN], bf16 with f32 sums. a: fragments in
//                              registers, or a tile; b: a tile, one row for each of its kN columns
//   WgmmaTransposed<kN>(d, a, b, adds)   as before, b: a tile of one row for each k
//   WgmmaFence()               before the first Wgmma, and before one whose registers (d, or a in
//                              registers) were written otherwise
//   WgmmaCommit(), WgmmaWait<n>()   until at most n committed groups are under way; then d may be read,
//                              and a in registers and tiles written
//   PinRegisters(registers)    an array: the compiler computes it before what follows, and changes none of it
//                              before: behind a WgmmaWait, as else it may read d before it
//   FenceAsyncShared()         what the thread wrote to shared memory (CpAsync too, once waited for) is
//                              seen by Wgmma and BulkCopy of those that meet it at a barrier afterwards
//   BarrierInit(barrier, count), BarrierInitDone()   by one thread; then SyncThreads() of all
//   BarrierArrive(barrier), BarrierExpect(barrier, bytes)   an arrival; one that promises bytes
//   BarrierWait(barrier, parity)   until the phase of this parity is over: the first has parity 0
//   BulkCopy(shared, global, bytes, barrier)   by one thread: multiples of 16 bytes, aligned to 16
//   CpAsync4(shared, global, valid)   as CpAsync16
//   SyncSome(id, threads), ArriveSome(id, threads)   barrier `id` (1 to 15) of so many threads, whole warps:
//                              waits or not
//   KeepRegisters<n>(), TakeRegisters<n>()   of a warpgroup: of each thread's registers n stay, or become
//
// A thread's accumulator of Wgmma is [kN / 8][4]: in each 8 columns as the c of MmaBF16, with the rows of
// warp w of the warpgroup beginning at 16 w. Fragments of a are those of MmaBF16 likewise.
//
// A tile is of rows of 128 bytes, 64 elements, which lie in groups of 8 (1,024 bytes, aligned to that) in
// which chunk c (16 bytes) of row r is at c ^ (r % 8) (PTX ISA, "Strides", 128-byte swizzling).
//   a, and b of Wgmma: a row holds elements of k. `stride`: bytes from 8 rows to the next 8. A step of k is
//   16 elements: TileAt(tile, 32 * step) within the 128 bytes.
//   b of WgmmaTransposed: a row is a k and holds 64 columns of b. `stride`: bytes from 8 rows to the next 8,
//   `leading`: from 64 columns to the next 64. A step of k is 16 rows: TileAt(tile, 2 * stride * step).
// Dynamic shared memory begins at a multiple of 1,024 bytes in kernels that have no other (in the emulator:
// whose size is a multiple of 1,024, too).
#pragma once

#include "kernels/simt/simt.h"

#ifdef __CUDACC__
#include "kernels/simt/warpgroup_cuda.h"
#else
#include "kernels/simt/warpgroup_emulated.h"
#endif

namespace terrace::simt {

inline constexpr uint32_t kWarpgroup = 128;

// The tile that begins `bytes` (a multiple of 16) behind this one.
TERRACE_DEVICE uint64_t TileAt(uint64_t tile, uint32_t bytes) { return tile + (bytes >> 4); }

// Byte of chunk `chunk` of row `row` in a tile whose groups of 8 rows follow each other.
TERRACE_DEVICE constexpr uint32_t SwizzledByte(uint32_t row, uint32_t chunk) {
  return row * 128 + ((chunk ^ (row % 8)) * 16);
}

}  // namespace terrace::simt

/// The instruction set that this translation unit is compiled for; CMake defines STERNA_LEVEL as its name and gives the
/// flags.
///
/// These sources use no C++ library code that could leave a weak symbol behind: an inline function compiled with
/// AVX-512 flags may be picked by the linker for the whole program.
#pragma once

#include "cpu/kernel_table.h"

#define STERNA_LEVEL_scalar 1
#define STERNA_LEVEL_avx2 2
#define STERNA_LEVEL_avx512 3
#define STERNA_JOIN_(a, b) a##b
#define STERNA_JOIN(a, b) STERNA_JOIN_(a, b)
#if STERNA_JOIN(STERNA_LEVEL_, STERNA_LEVEL) == 1
#include "cpu/simd/scalar.h"
#elif STERNA_JOIN(STERNA_LEVEL_, STERNA_LEVEL) == 2
#include "cpu/simd/avx2.h"
#else
#include "cpu/simd/avx512.h"
#endif

namespace sterna::cpu::STERNA_LEVEL {

void fill_rows(KernelTable& table);
void fill_recurrent(KernelTable& table);
void fill_attention(KernelTable& table);
void fill_attention_q8_0(KernelTable& table);
void fill_matmul_block(KernelTable& table);
void fill_matmul_super(KernelTable& table);
void fill_gemm(KernelTable& table);

}  // namespace sterna::cpu::STERNA_LEVEL

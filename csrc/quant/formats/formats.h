/// One decoder per quantised format and one converter per plain float format; csrc/quant/format.cpp puts them in the
/// table. The byte map of a format opens its source file. Every decoder accepts any bytes.
#pragma once

#include <cstdint>

#include "quant/format.h"

namespace sterna::quant {

void decode_q4_0(const std::uint8_t* block, DecodedBlock& out);
void decode_q4_1(const std::uint8_t* block, DecodedBlock& out);
void decode_q5_0(const std::uint8_t* block, DecodedBlock& out);
void decode_q5_1(const std::uint8_t* block, DecodedBlock& out);
void decode_q8_0(const std::uint8_t* block, DecodedBlock& out);
void decode_q1_0(const std::uint8_t* block, DecodedBlock& out);
void decode_q2_0(const std::uint8_t* block, DecodedBlock& out);
void decode_q2_0_g128(const std::uint8_t* block, DecodedBlock& out);
void decode_i2_s(const std::uint8_t* block, DecodedBlock& out);
void decode_i2_s_arm(const std::uint8_t* block, DecodedBlock& out);
void decode_mxfp4(const std::uint8_t* block, DecodedBlock& out);
void decode_nvfp4(const std::uint8_t* block, DecodedBlock& out);
void decode_iq4_nl(const std::uint8_t* block, DecodedBlock& out);

void decode_q2_k(const std::uint8_t* block, DecodedBlock& out);
void decode_q3_k(const std::uint8_t* block, DecodedBlock& out);
void decode_q4_k(const std::uint8_t* block, DecodedBlock& out);
void decode_q5_k(const std::uint8_t* block, DecodedBlock& out);
void decode_q6_k(const std::uint8_t* block, DecodedBlock& out);
void decode_iq1_s(const std::uint8_t* block, DecodedBlock& out);
void decode_iq1_m(const std::uint8_t* block, DecodedBlock& out);
void decode_iq2_xxs(const std::uint8_t* block, DecodedBlock& out);
void decode_iq2_xs(const std::uint8_t* block, DecodedBlock& out);
void decode_iq2_s(const std::uint8_t* block, DecodedBlock& out);
void decode_iq3_xxs(const std::uint8_t* block, DecodedBlock& out);
void decode_iq3_s(const std::uint8_t* block, DecodedBlock& out);
void decode_iq4_xs(const std::uint8_t* block, DecodedBlock& out);
void decode_tq1_0(const std::uint8_t* block, DecodedBlock& out);
void decode_tq2_0(const std::uint8_t* block, DecodedBlock& out);

void dequantize_f32(const std::uint8_t* block, float* out);
void dequantize_f16(const std::uint8_t* block, float* out);
void dequantize_bf16(const std::uint8_t* block, float* out);
void dequantize_f64(const std::uint8_t* block, float* out);

}  // namespace sterna::quant

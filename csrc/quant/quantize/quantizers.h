/// One quantiser per format: a row of `k` floats, whole blocks, to the format's bytes.
///
/// `importance` [k] weighs the squared error of a weight, or is null; formats whose rounding is fixed ignore it. All
/// floats are finite. A weight too large for the format leaves an infinite scale (or value), which the caller looks
/// for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sterna::quant {

using QuantizeRow = void(const float* row, std::size_t k, const float* importance, std::uint8_t* out);

// Fixed rounding, byte for byte that of gguf.quants.
QuantizeRow quantize_f32, quantize_f16, quantize_bf16;
QuantizeRow quantize_q8_0, quantize_mxfp4, quantize_tq1_0, quantize_tq2_0;
// Likewise without importance; with it, a search.
QuantizeRow quantize_q4_0, quantize_q4_1, quantize_q5_0, quantize_q5_1;
// Searches.
QuantizeRow quantize_q2_k, quantize_q3_k, quantize_q4_k, quantize_q5_k, quantize_q6_k;
QuantizeRow quantize_iq4_nl, quantize_iq4_xs;

}  // namespace sterna::quant

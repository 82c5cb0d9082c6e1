/// The text form of a Program: what `sterna trace` prints, what golden tests compare, and what a host without Python
/// can load.
///
///   program 1
///   input %tokens [T]
///   weight @blk.0.attn_q [576, 576] Q4_1
///   kv 0: 3 heads, 64, 64
///   state 1: short_conv, 3, 192
///   function logits
///     %embed [T, 576] = embed(tokens=%tokens, w=@token_embd)  # models/llama.py:14
///     %layers.0/attn_norm [T, 576] = rms_norm(x=%embed, w=@blk.0.attn_norm) {eps=1e-05}  # models/llama.py:18
///     return %logits
///
/// Attributes that have their default value are left out. Names with other characters than letters, digits and _ . / -
/// : + are quoted. A kv line gives the layer, the number of K/V heads, the head dimensions of K and V,
/// and "latent" where V is the beginning of K; a state line the layer, the recurrent op, and the extents of the matrix
/// that it keeps.
#pragma once

#include <string>
#include <string_view>

#include "program/program.h"

namespace sterna {

/// The text of a legal program.
std::string to_text(const Program& program);

/// The program of a text; to_text(parse_program(text)) == text for every text that to_text wrote. Any bytes are safe.
/// Throws ArgumentError with line and column.
Program parse_program(std::string_view text);

}  // namespace sterna

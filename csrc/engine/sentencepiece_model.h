/// Writes what the sentencepiece library loads a vocabulary from.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace sterna {

/// The pieces of a ModelProto (sentencepiece_model.proto): field 1 for each, a message with piece = 1, score = 2 and
/// type = 3. `types` are the library's. Throws ArgumentError unless all three are equally long.
std::string sentencepiece_pieces(std::span<const std::string_view> texts, std::span<const float> scores,
                                 std::span<const std::uint8_t> types);

}  // namespace sterna

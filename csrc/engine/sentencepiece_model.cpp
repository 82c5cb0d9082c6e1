#include "engine/sentencepiece_model.h"

#include <bit>

#include "base/error.h"

namespace sterna {
namespace {

constexpr char kPiece = 1 << 3 | 2;  // number of the field and wire type
constexpr char kScore = 2 << 3 | 5;
constexpr char kType = 3 << 3 | 0;

void append_varint(std::uint64_t value, std::string& out) {
  for (; value > 127; value >>= 7) out.push_back(static_cast<char>((value & 127) | 128));
  out.push_back(static_cast<char>(value));
}

void append_float(float value, std::string& out) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  for (int shift = 0; shift < 32; shift += 8) out.push_back(static_cast<char>((bits >> shift) & 0xFF));
}

}  // namespace

std::string sentencepiece_pieces(std::span<const std::string_view> texts, std::span<const float> scores,
                                 std::span<const std::uint8_t> types) {
  if (texts.size() != scores.size() || texts.size() != types.size()) {
    throw ArgumentError(std::to_string(texts.size()) + " texts, " + std::to_string(scores.size()) + " scores and " +
                        std::to_string(types.size()) + " types");
  }
  std::size_t bytes = 0;
  for (const std::string_view text : texts) bytes += text.size() + 16;
  std::string out;
  out.reserve(bytes);
  std::string piece;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    piece.clear();
    piece.push_back(kPiece);
    append_varint(texts[i].size(), piece);
    piece += texts[i];
    piece.push_back(kScore);
    append_float(scores[i], piece);
    piece.push_back(kType);
    append_varint(types[i], piece);
    out.push_back(kPiece);  // field 1 of the outer message too
    append_varint(piece.size(), out);
    out += piece;
  }
  return out;
}

}  // namespace sterna

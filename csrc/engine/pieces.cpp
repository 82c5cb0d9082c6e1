#include "engine/pieces.h"

#include <array>
#include <limits>
#include <optional>

#include "base/error.h"
#include "engine/text_stream.h"
#include "gguf/metadata.h"

namespace sterna {
namespace {

/// GPT-2's alphabet: bytes that print stand for themselves, the other 68 take the code points from U+0100 on.
constexpr bool prints(unsigned b) {
  return (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
}

constexpr unsigned kAlphabetEnd = 0x100 + 68;

constexpr auto kByteOfCharacter = [] {
  std::array<std::int16_t, kAlphabetEnd> table{};
  for (auto& byte : table) byte = -1;
  unsigned next = 0x100;
  for (unsigned b = 0; b < 256; ++b) table[prints(b) ? b : next++] = static_cast<std::int16_t>(b);
  return table;
}();

/// Appends the bytes that `token` spells; false, with nothing appended, where it leaves the alphabet.
bool append_byte_level(std::string_view token, std::string& out) {
  const std::size_t begin = out.size();
  for (std::size_t i = 0; i < token.size(); ++i) {
    unsigned c = static_cast<std::uint8_t>(token[i]);
    // The alphabet ends below U+0800: one or two bytes of UTF-8.
    if (c >= 0xC2 && c <= 0xDF && i + 1 < token.size())
      c = (c & 0x1F) << 6 | (static_cast<std::uint8_t>(token[++i]) & 0x3F);
    else if (c >= 0x80)
      c = kAlphabetEnd;
    if (c >= kAlphabetEnd || kByteOfCharacter[c] < 0) {
      out.resize(begin);
      return false;
    }
    out.push_back(static_cast<char>(kByteOfCharacter[c]));
  }
  return true;
}

void append_sentence_piece(std::string_view token, std::string& out) {
  constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581
  while (true) {
    const std::size_t at = token.find(kSpace);
    out += token.substr(0, at);
    if (at == std::string_view::npos) return;
    out.push_back(' ');
    token.remove_prefix(at + kSpace.size());
  }
}

std::optional<unsigned> hex_digit(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  return std::nullopt;
}

/// The byte of "<0x0A>".
std::optional<char> parse_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  const auto high = hex_digit(token[3]);
  const auto low = hex_digit(token[4]);
  if (!high || !low) return std::nullopt;
  return static_cast<char>(*high << 4 | *low);
}

}  // namespace

PieceKind piece_kind(std::string_view model) {
  if (model == "gpt2") return PieceKind::kByteLevel;
  if (model == "llama" || model == "t5" || model == "bert") return PieceKind::kSentencePiece;
  throw UnsupportedModelError("tokenizer.ggml.model \"" + std::string(model) + "\" is not supported");
}

void Pieces::append(PieceKind kind, std::string_view token, TokenType type) {
  if (type == TokenType::kByte) {
    const auto byte = parse_byte(token);
    if (!byte) {
      throw ArgumentError("token " + std::to_string(ends_.size()) + " has type 6 (byte) but is not of the form <0xNN>");
    }
    bytes_.push_back(*byte);
  } else if (kind == PieceKind::kSentencePiece) {
    append_sentence_piece(token, bytes_);
  } else if (type != TokenType::kNormal || !append_byte_level(token, bytes_)) {
    bytes_ += token;  // added tokens are plain text
  }
  if (bytes_.size() > std::numeric_limits<std::uint32_t>::max()) throw ArgumentError("the tokens have more than 4 GiB");
  ends_.push_back(static_cast<std::uint32_t>(bytes_.size()));
  special_.push_back(type == TokenType::kControl || type == TokenType::kUnknown);
}

Pieces Pieces::from_tokens(PieceKind kind, std::span<const std::string_view> tokens,
                           std::span<const std::int32_t> types) {
  if (!types.empty() && types.size() != tokens.size()) {
    throw ArgumentError(std::to_string(tokens.size()) + " tokens but " + std::to_string(types.size()) + " token types");
  }
  Pieces pieces;
  pieces.ends_.reserve(tokens.size());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    pieces.append(kind, tokens[i], types.empty() ? TokenType::kNormal : static_cast<TokenType>(types[i]));
  }
  return pieces;
}

Pieces Pieces::from_metadata(const Metadata& metadata) {
  const PieceKind kind = piece_kind(metadata.get_string("tokenizer.ggml.model"));
  const StringArray tokens = metadata.get_strings("tokenizer.ggml.tokens");
  const auto types = metadata.find_i32_array("tokenizer.ggml.token_type", tokens.size());
  Pieces pieces;
  pieces.ends_.reserve(tokens.size());
  try {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      pieces.append(kind, tokens[i], types ? static_cast<TokenType>((*types)[i]) : TokenType::kNormal);
    }
  } catch (const ArgumentError& e) {
    metadata.fail("tokenizer.ggml.tokens", e.what());
  }
  return pieces;
}

std::string_view Pieces::piece(std::int32_t token, bool special) const {
  if (token < 0 || token >= size()) return {};
  const auto i = static_cast<std::size_t>(token);
  if (special_[i] && !special) return {};
  const std::uint32_t begin = i == 0 ? 0 : ends_[i - 1];
  return std::string_view(bytes_).substr(begin, ends_[i] - begin);
}

bool Pieces::is_control(std::int32_t token) const {
  return token >= 0 && token < size() && special_[static_cast<std::size_t>(token)];
}

std::string Pieces::decode(std::span<const std::int32_t> tokens, bool special, bool drop_leading_space) const {
  TextStream stream({}, drop_leading_space);
  std::string text;
  for (const std::int32_t token : tokens) text += stream.push(piece(token, special));
  text += stream.finish();
  return text;
}

}  // namespace sterna

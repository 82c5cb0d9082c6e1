/// The bytes of every token of a vocabulary, ready to be streamed: what a detokeniser needs, and no more.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sterna {

class Metadata;

/// tokenizer.ggml.token_type of a GGUF file (llama.h, enum llama_token_type).
enum class TokenType : std::int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

/// How token strings stand for bytes.
enum class PieceKind {
  kByteLevel,      // each byte a printable character (GPT-2)
  kSentencePiece,  // U+2581 is a space, "<0x0A>" a byte
};

/// The kind for a value of tokenizer.ggml.model; throws UnsupportedModelError for one that is not known.
PieceKind piece_kind(std::string_view model);

class Pieces {
 public:
  /// `types` may be empty (all normal); otherwise as long as `tokens`, or ArgumentError. Throws ArgumentError naming a
  /// byte token that is not "<0xNN>".
  static Pieces from_tokens(PieceKind kind, std::span<const std::string_view> tokens,
                            std::span<const std::int32_t> types);

  /// From tokenizer.ggml.model, .tokens and .token_type. Throws ModelFormatError, UnsupportedModelError.
  static Pieces from_metadata(const Metadata& metadata);

  std::int32_t size() const { return static_cast<std::int32_t>(special_.size()); }
  /// The bytes of a token: none for control and unknown tokens unless `special`, none outside of the vocabulary (models
  /// may have more logits than tokens).
  std::string_view piece(std::int32_t token, bool special = false) const;
  bool is_control(std::int32_t token) const;
  /// The whole text at once, as TextStream would give it.
  std::string decode(std::span<const std::int32_t> tokens, bool special = false, bool drop_leading_space = false) const;

 private:
  void append(PieceKind kind, std::string_view token, TokenType type);

  std::string bytes_;
  std::vector<std::uint32_t> ends_;  // of each token, in bytes_
  std::vector<bool> special_;        // control or unknown
};

}  // namespace sterna

/// Bytes of tokens in, text out: whole characters only, and nothing that may turn out to begin a stop string.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sterna {

/// Decodes UTF-8 as it arrives; what is invalid becomes U+FFFD, one per maximal subpart (Unicode 16.0, 3.9), as in
/// Python's decode("utf-8", "replace").
class Utf8Decoder {
 public:
  /// Appends the text that `bytes` completes.
  void push(std::string_view bytes, std::string& out);
  /// An unfinished character becomes U+FFFD.
  void finish(std::string& out);

 private:
  void byte(std::uint8_t b, std::string& out);

  std::string partial_;         // bytes of the character that is being read
  int missing_ = 0;             // bytes that it still needs
  std::uint8_t lowest_ = 0x80;  // range of the next one
  std::uint8_t highest_ = 0xBF;
};

/// The text of one generation. How the bytes were split never changes the text: the concatenation of all pieces is the
/// same. A stop string ends the text where it begins; the one that is complete first wins, of two complete at once the
/// longer.
class TextStream {
 public:
  /// Throws ArgumentError for an empty stop string, or more than 1,024 of them.
  explicit TextStream(std::vector<std::string> stop_strings = {}, bool drop_leading_space = false);

  /// The text that is now sure to be part of the output.
  std::string push(std::string_view bytes);
  /// The rest.
  std::string finish();

  /// Which stop string ended the text; later bytes are ignored.
  const std::string* stopped() const { return stopped_ ? &stops_[*stopped_].text : nullptr; }

 private:
  struct Stop {
    std::string text;
    std::vector<std::uint32_t> failure;  // Knuth-Morris-Pratt: the longest border of each prefix
    std::uint32_t matched = 0;           // bytes of `text` that the output so far ends with
  };

  /// Moves `text` to the end of held_, then gives what no stop string can claim any more.
  std::string release(const std::string& text);

  Utf8Decoder decoder_;
  std::vector<Stop> stops_;
  std::string held_;
  std::optional<std::size_t> stopped_;
  bool drop_leading_space_;
};

}  // namespace sterna

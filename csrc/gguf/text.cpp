#include "gguf/text.h"

#include <cstdint>

namespace sterna {
namespace {

struct Character {
  char32_t code = 0;
  std::size_t length = 0;  // bytes; 0 where the bytes are no UTF-8
};

/// The character at the start of `text`, which is not empty (Unicode 15, table 3-7).
Character decode(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(text[i]); };
  const std::uint8_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xC2 || lead > 0xF4) return {};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (text.size() < length) return {};
  char32_t code = lead & (0x7Fu >> length);
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0u) != 0x80u) return {};
    code = (code << 6) | (byte(i) & 0x3Fu);
  }
  constexpr char32_t kSmallest[] = {0, 0, 0x80, 0x800, 0x10000};
  if (code < kSmallest[length] || code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) return {};
  return {code, length};
}

/// Control characters, line and paragraph separators, and marks that reorder or hide what stands around them.
bool is_control(char32_t code) {
  return code < 0x20 || (code >= 0x7F && code < 0xA0) || (code >= 0x200B && code <= 0x200F) ||
         (code >= 0x2028 && code <= 0x202E) || (code >= 0x2060 && code <= 0x206F) || code == 0xFEFF;
}

void append_hex(std::string& out, std::uint32_t value, int digits) {
  for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) out += "0123456789abcdef"[(value >> shift) & 0xFu];
}

std::string escape(std::string_view text, std::size_t max_bytes, bool escape_quotes) {
  std::string out;
  std::size_t at = 0;
  while (at < text.size()) {
    if (at >= max_bytes) return out + "...";
    const Character c = decode(text.substr(at));
    if (c.length == 0) {
      out += "\\x";
      append_hex(out, static_cast<std::uint8_t>(text[at]), 2);
      at += 1;
      continue;
    }
    if (is_control(c.code)) {
      out += c.code < 0x100 ? "\\x" : "\\u";
      append_hex(out, c.code, c.code < 0x100 ? 2 : 4);
    } else {
      if (escape_quotes && (c.code == U'"' || c.code == U'\\')) out += '\\';
      out += text.substr(at, c.length);
    }
    at += c.length;
  }
  return out;
}

}  // namespace

bool is_utf8(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    const Character c = decode(text.substr(at));
    if (c.length == 0) return false;
    at += c.length;
  }
  return true;
}

const char* name_fault(std::string_view name) {
  if (name.empty()) return "is empty";
  for (std::size_t at = 0; at < name.size();) {
    const Character c = decode(name.substr(at));
    if (c.length == 0) return "is not UTF-8";
    if (c.code == 0) return "contains a NUL";
    if (is_control(c.code)) return "contains a control character";
    at += c.length;
  }
  return nullptr;
}

std::string printable(std::string_view text, std::size_t max_bytes) { return escape(text, max_bytes, true); }

std::string printable_path(std::string_view path) { return escape(path, path.size(), false); }

}  // namespace sterna

/// Text that comes from files: is it UTF-8, is it fit to be a name, and how is it shown in a message without harm.
#pragma once

#include <string>
#include <string_view>

namespace sterna {

/// True when `text` is well-formed UTF-8 (no surrogates, no overlong forms, nothing above U+10FFFF).
bool is_utf8(std::string_view text);

/// What keeps `name` from being a key or a tensor name ("is empty", "is not UTF-8", ...), or null when it is fine.
const char* name_fault(std::string_view name);

/// `text` with control characters, direction marks, quotes, backslashes and bad UTF-8 escaped, so that a hostile name
/// can neither forge a line of a log nor drive a terminal; at most `max_bytes` of it are shown.
std::string printable(std::string_view text, std::size_t max_bytes = 120);

/// A path for a message: like printable(), but whole, and with quotes and backslashes as they are.
std::string printable_path(std::string_view path);

}  // namespace sterna

/// Tells what a file without the GGUF magic really is, so that the error can say so.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace sterna {

/// What a file is whose first bytes are `head`, as the end of a sentence that begins with "this".
std::string describe_foreign_file(std::span<const std::uint8_t> head, std::uint64_t file_size);

}  // namespace sterna

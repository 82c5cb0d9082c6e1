#include "gguf/sniff.h"

#include <algorithm>
#include <string_view>

#include "gguf/reader.h"
#include "gguf/text.h"

namespace sterna {
namespace {

struct Signature {
  std::string_view bytes;
  std::string_view meaning;
};

using namespace std::string_view_literals;

constexpr Signature kSignatures[] = {
    {"FUGG"sv, "is a GGUF file of a big-endian machine"},
    // The magics of GGML's older containers are little-endian words, so they stand reversed in the file.
    {"lmgg"sv, "is a legacy GGML file, from before GGUF; convert it anew"},
    {"fmgg"sv, "is a legacy GGML file (ggmf), from before GGUF; convert it anew"},
    {"tjgg"sv, "is a legacy GGML file (ggjt), from before GGUF; convert it anew"},
    {"algg"sv, "is a legacy GGML adapter (ggla), from before GGUF; convert it anew"},
    {"ggml"sv, "is a legacy GGML file, from before GGUF; convert it anew"},
    {"ggjt"sv, "is a legacy GGML file (ggjt), from before GGUF; convert it anew"},
    {"PK\x03\x04"sv, "is a zip archive (a PyTorch checkpoint, or a package?)"},
    {"PK\x05\x06"sv, "is a zip archive (a PyTorch checkpoint, or a package?)"},
    {"version https://git-lfs"sv, "is a git-lfs pointer, not the model: run `git lfs pull`"},
    {"\x1f\x8b"sv, "is a gzip archive"},
    {"\x28\xb5\x2f\xfd"sv, "is a zstd archive"},
    {"\xfd"
     "7zXZ"sv,
     "is an xz archive"},
    {"7z\xbc\xaf\x27\x1c"sv, "is a 7z archive"},
    {"\x89HDF"sv, "is an HDF5 file"},
    {"\x93NUMPY"sv, "is a numpy file"},
};

bool is_html(std::string_view text) {
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  while (!text.empty() && std::string_view(" \t\r\n").find(text.front()) != std::string_view::npos)
    text.remove_prefix(1);
  std::string start(text.substr(0, 9));
  for (char& c : start) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  for (const std::string_view tag : {"<!doctype"sv, "<html"sv, "<head"sv, "<?xml"sv}) {
    if (start.starts_with(tag)) return true;
  }
  return false;
}

}  // namespace

std::string describe_foreign_file(std::span<const std::uint8_t> head, std::uint64_t file_size) {
  if (head.empty()) return "is an empty file";
  const std::string_view text(reinterpret_cast<const char*>(head.data()), head.size());
  for (const Signature& s : kSignatures) {
    if (text.starts_with(s.bytes)) return std::string(s.meaning);
  }
  if (is_html(text)) return "is an HTML page (an error page, or a link to a web site instead of the file?)";
  // safetensors: the length of its JSON header, then the header.
  if (head.size() > 8 && text[8] == '{' && load_little_endian<std::uint64_t>(head.data()) <= file_size - 8) {
    return "is a safetensors file; convert it to GGUF";
  }
  // pickle: the PROTO opcode and a protocol of 2 to 5.
  if (head.size() > 1 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5) {
    return "is a Python pickle (an old PyTorch checkpoint?); convert it to GGUF";
  }
  if (text.front() == '{') return "is JSON text";
  if (std::all_of(head.begin(), head.end(), [](std::uint8_t b) { return b == 0; })) {
    return "begins with zeros (a download that was never finished?)";
  }
  return "is not a GGUF file: it begins with \"" + printable(text.substr(0, 4)) + "\"";
}

}  // namespace sterna

/// Hostile GGUF files under the sanitizers. Without arguments: a good file, cut at every byte, with every byte changed
/// and boundary values written over every place. With the folder that tests/gguf/corpus.py wrote: the corpus as well,
/// each file as its manifest says and then changed in the same ways.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "base/error.h"
#include "gguf/gguf.h"

namespace {

using Bytes = std::vector<std::uint8_t>;

long opened = 0;
long refused = 0;
long failures = 0;

void report(const std::string& what) {
  std::printf("%s\n", what.c_str());
  ++failures;
}

template <class Call>
void tolerate(Call call) {
  try {
    call();
  } catch (const sterna::ModelFormatError&) {
  }
}

using Getter = std::size_t (*)(const sterna::Metadata& m, std::string_view key);
constexpr Getter kGetters[] = {
    [](const sterna::Metadata& m, std::string_view key) { return std::size_t{m.get_u32(key)}; },
    [](const sterna::Metadata& m, std::string_view key) { return std::size_t{m.get_u64(key)}; },
    [](const sterna::Metadata& m, std::string_view key) { return static_cast<std::size_t>(m.get_i64(key)); },
    [](const sterna::Metadata& m, std::string_view key) { return std::size_t{m.get_f32(key) > 0}; },
    [](const sterna::Metadata& m, std::string_view key) { return std::size_t{m.find_any_float(key).has_value()}; },
    [](const sterna::Metadata& m, std::string_view key) { return std::size_t{m.get_bool(key)}; },
    [](const sterna::Metadata& m, std::string_view key) { return m.get_string(key).size(); },
    [](const sterna::Metadata& m, std::string_view key) { return m.get_u32_array(key).size(); },
    [](const sterna::Metadata& m, std::string_view key) { return m.get_i32_array(key, 3).size(); },
    [](const sterna::Metadata& m, std::string_view key) { return m.get_f32_array(key).size(); },
    [](const sterna::Metadata& m, std::string_view key) { return m.find_bool_array(key)->size(); },
    [](const sterna::Metadata& m, std::string_view key) {
      const sterna::StringArray strings = m.get_strings(key);
      std::size_t bytes = 0;
      for (std::size_t j = 0; j < strings.size(); ++j) bytes += strings[j].size();
      return bytes;
    },
};

/// Getters on every key, and both ends of every tensor. Each key gets another getter each time: most of them throw,
/// which takes far longer than reading the file.
void walk(const sterna::GgufModel& model) {
  static std::size_t turn = 0;
  const sterna::Metadata& m = model.metadata();
  std::size_t touched = 0;
  for (std::size_t i = 0; i < m.size(); ++i) {
    const std::string key(m.key(i));
    tolerate([&] { touched += kGetters[turn++ % std::size(kGetters)](m, key); });
    if (!sterna::Metadata::same_value(m, m, key)) report(key + " differs from itself");
  }
  for (const sterna::TensorInfo& tensor : model.tensors()) {
    std::array<std::uint8_t, 16> bytes;
    const std::uint64_t n = std::min<std::uint64_t>(tensor.bytes, bytes.size());
    model.read(tensor, 0, std::span(bytes).first(n));
    model.read(tensor, tensor.bytes - n, std::span(bytes).first(n));
    if (model.find(tensor.name) != &tensor) report(tensor.name + " is not found by its name");
  }
  if (touched == SIZE_MAX) report("impossible");  // keeps the reads alive
}

/// Opens `path`; only the two typed errors may come out. Returns whether it opened.
bool open(const std::string& path) {
  try {
    walk(sterna::GgufModel::open(path));
    ++opened;
    return true;
  } catch (const sterna::ModelFormatError&) {
  } catch (const sterna::FileError&) {
  } catch (const std::exception& e) {
    report(path + ": untyped error " + e.what());
  }
  ++refused;
  return false;
}

/// A file in the temporary folder whose content is changed in place.
class Scratch {
 public:
  Scratch() {
    const std::filesystem::path memory = "/dev/shm";  // a disk would take longer than the reader
    const bool has_memory = std::filesystem::is_directory(memory);
    const std::filesystem::path folder = has_memory ? memory : std::filesystem::temp_directory_path();
    std::string pattern = (folder / "sterna-gguf-XXXXXX").string();
    descriptor_ = ::mkstemp(pattern.data());
    path_ = pattern;
    if (descriptor_ < 0) std::perror("mkstemp"), std::exit(2);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    ::close(descriptor_);
    std::filesystem::remove(path_);
  }

  const std::string& path() const { return path_; }
  void truncate(std::size_t size) const { must(::ftruncate(descriptor_, static_cast<off_t>(size)) == 0); }
  void write(std::size_t at, std::span<const std::uint8_t> bytes) const {
    must(::pwrite(descriptor_, bytes.data(), bytes.size(), static_cast<off_t>(at)) ==
         static_cast<ssize_t>(bytes.size()));
  }
  void assign(const Bytes& content) const {
    truncate(0);
    write(0, content);
  }

 private:
  static void must(bool done) {
    if (!done) std::perror("scratch file"), std::exit(2);
  }

  std::string path_;
  int descriptor_;
};

/// Some bytes at random of the first `head`, over and over.
void havoc(const Scratch& scratch, const Bytes& content, std::size_t head) {
  std::mt19937_64 random(head);
  for (std::size_t round = 0; round < head; ++round) {
    Bytes changed = content;
    for (int change = 0; change < 4; ++change) changed[random() % head] = static_cast<std::uint8_t>(random());
    scratch.assign(changed);
    open(scratch.path());
  }
}

/// Cuts everywhere, and changes of every byte of the first `head`.
void mutate(const Scratch& scratch, const Bytes& content, std::size_t head) {
  scratch.assign(content);
  for (std::size_t size = content.size(); size-- > 0;) {
    scratch.truncate(size);
    open(scratch.path());
  }
  scratch.assign(content);
  for (std::size_t at = 0; at < head; ++at) {
    const std::uint8_t byte = content[at];
    for (const int changed : {0, 255, byte ^ 1, byte ^ 128, byte + 1}) {
      const std::uint8_t value = static_cast<std::uint8_t>(changed);
      scratch.write(at, {&value, 1});
      open(scratch.path());
    }
    scratch.write(at, {&byte, 1});
  }
}

/// Boundary values of 32 and 64 bits over every place of the head, which covers every integer field.
void overwrite(const Scratch& scratch, const Bytes& content, std::size_t head) {
  constexpr std::uint64_t kValues[] = {0,
                                       1,
                                       2,
                                       255,
                                       65536,
                                       (1ull << 31) - 1,
                                       1ull << 31,
                                       (1ull << 32) - 1,
                                       1ull << 32,
                                       1ull << 61,
                                       (1ull << 63) - 1,
                                       1ull << 63,
                                       ~0ull - 31,
                                       ~0ull};
  scratch.assign(content);
  for (std::size_t at = 0; at + 8 <= head; ++at) {
    for (const std::uint64_t value : kValues) {
      std::array<std::uint8_t, 8> bytes;
      for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<std::uint8_t>(value >> (8 * i));
      scratch.write(at, bytes);
      open(scratch.path());
      scratch.write(at, std::span(content).subspan(at, 8));
      if (value > 0xFFFFFFFFu) continue;
      scratch.write(at, std::span(bytes).first(4));
      open(scratch.path());
      scratch.write(at, std::span(content).subspan(at, 4));
    }
  }
}

/// A small good file: numbers, strings, arrays, and two tensors.
class Seed {
 public:
  Seed() {
    bytes_.insert(bytes_.end(), {'G', 'G', 'U', 'F'});
    u32(3);
    u64(2);
    u64(7);
    text("general.architecture"), u32(8), text("llama");
    text("general.alignment"), u32(4), u32(32);
    text("a.bool"), u32(7), bytes_.push_back(1);
    text("a.f64"), u32(12), u64(0x3FF0000000000000u);
    text("b.strings"), u32(9), u32(8), u64(2), text("one"), text("");
    text("b.f32"), u32(9), u32(6), u64(3), u32(0x3F800000u), u32(0), u32(0x7FC00000u);
    text("b.i8"), u32(9), u32(1), u64(3), bytes_.insert(bytes_.end(), {1, 2, 255});
    text("w"), u32(2), u64(32), u64(2), u32(8), u64(0);  // Q8_0
    text("v"), u32(1), u64(8), u32(0), u64(96);          // F32
    head_ = bytes_.size();
    bytes_.resize((head_ + 31) / 32 * 32 + 96 + 32);
  }

  const Bytes& bytes() const { return bytes_; }
  std::size_t head() const { return head_; }

 private:
  void u32(std::uint32_t v) {
    for (int i = 0; i < 4; ++i) bytes_.push_back(static_cast<std::uint8_t>(v >> (8 * i)));
  }
  void u64(std::uint64_t v) {
    for (int i = 0; i < 8; ++i) bytes_.push_back(static_cast<std::uint8_t>(v >> (8 * i)));
  }
  void text(std::string_view s) {
    u64(s.size());
    bytes_.insert(bytes_.end(), s.begin(), s.end());
  }

  Bytes bytes_;
  std::size_t head_;
};

Bytes contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return Bytes(std::istreambuf_iterator<char>(file), {});
}

void run_corpus(const Scratch& scratch, const std::string& folder) {
  constexpr std::uintmax_t kMostMutated = 2048;  // bytes; larger ones are opened only
  std::ifstream manifest(folder + "/manifest.txt");
  std::string verdict, name;
  long cases = 0;
  while (manifest >> verdict && std::getline(manifest >> std::ws, name)) {
    ++cases;
    const std::string path = folder + "/" + name;
    if (open(path) != (verdict == "accept")) report(name + ": expected to " + verdict + " it");
    if (!std::filesystem::exists(path) || std::filesystem::file_size(path) > kMostMutated) continue;
    const Bytes content = contents(path);
    havoc(scratch, content, content.size());
    if (verdict == "accept") mutate(scratch, content, content.size());
  }
  std::printf("%ld cases of the corpus\n", cases);
  if (cases == 0) report(folder + " has no manifest.txt with cases");
}

}  // namespace

int main(int argc, char** argv) {
  const Scratch scratch;
  const Seed seed;
  scratch.assign(seed.bytes());
  if (!open(scratch.path())) report("the good file is refused");
  havoc(scratch, seed.bytes(), seed.head());
  mutate(scratch, seed.bytes(), seed.head());
  overwrite(scratch, seed.bytes(), seed.head());
  if (argc > 1) run_corpus(scratch, argv[1]);
  std::printf("%ld files opened, %ld refused, %ld failures\n", opened, refused, failures);
  return failures == 0 ? 0 : 1;
}

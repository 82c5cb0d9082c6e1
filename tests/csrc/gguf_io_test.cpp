/// A disk that misbehaves: pread() gives one byte at a time, is interrupted, fails at the k-th call or sees a file that
/// shrank. The program brings its own pread(), which the reader then calls.
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "base/error.h"
#include "gguf/gguf.h"

namespace {

struct Disk {
  std::size_t most_bytes = SIZE_MAX;  // per call
  long interrupt_every = 0;           // 3: each third call goes through, the others fail with EINTR
  long fail_at = -1;                  // the call that fails
  int error_number = 0;               // how; 0 is the end of the file
  long calls = 0;
};
Disk disk;

int failures = 0;

void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("%s\n", what.c_str());
  ++failures;
}

/// A file with `pairs` pairs and one tensor of F32 [64].
std::string make_file(int pairs) {
  std::vector<std::uint8_t> bytes = {'G', 'G', 'U', 'F'};
  const auto number = [&](std::uint64_t v, int size) {
    for (int i = 0; i < size; ++i) bytes.push_back(static_cast<std::uint8_t>(v >> (8 * i)));
  };
  const auto text = [&](const std::string& s) {
    number(s.size(), 8);
    bytes.insert(bytes.end(), s.begin(), s.end());
  };
  number(3, 4), number(1, 8), number(static_cast<std::uint64_t>(pairs), 8);
  for (int i = 0; i < pairs; ++i) text("key." + std::to_string(i)), number(8, 4), text(std::string(100, 'x'));
  text("w"), number(1, 4), number(64, 8), number(0, 4), number(0, 8);
  bytes.resize((bytes.size() + 31) / 32 * 32);
  for (int i = 0; i < 256; ++i) bytes.push_back(static_cast<std::uint8_t>(i));

  std::string path = (std::filesystem::temp_directory_path() / "sterna-io-XXXXXX").string();
  const int descriptor = ::mkstemp(path.data());
  if (descriptor < 0 || ::write(descriptor, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
    std::perror("scratch file");
    std::exit(2);
  }
  ::close(descriptor);
  return path;
}

/// Opens the file and reads its tensor.
void load(const std::string& path, int pairs) {
  const sterna::GgufModel model = sterna::GgufModel::open(path);
  expect(model.metadata().size() == static_cast<std::size_t>(pairs), "pairs are missing");
  std::vector<std::uint8_t> data(256);
  model.read(model.require("w"), 0, data);
  for (int i = 0; i < 256; ++i) expect(data[static_cast<std::size_t>(i)] == i, "wrong tensor data");
}

void check(const std::string& path, int pairs) {
  disk = {};
  load(path, pairs);
  const long calls = disk.calls;

  disk = {};
  disk.interrupt_every = 3;
  load(path, pairs);
  expect(disk.calls > 2 * calls, "no call was interrupted");

  for (const int error_number : {EIO, ESTALE, 0}) {
    for (long k = 0; k < calls; ++k) {
      disk = {};
      disk.fail_at = k;
      disk.error_number = error_number;
      try {
        load(path, pairs);
        expect(false, "call " + std::to_string(k) + " failed unnoticed");
      } catch (const sterna::FileError& e) {
        expect(e.error_number() == (error_number == 0 ? EIO : error_number), "another error number");
      }
    }
  }
}

}  // namespace

extern "C" ssize_t pread(int descriptor, void* out, std::size_t size, off_t offset) {
  const long call = disk.calls++;
  if (disk.interrupt_every != 0 && call % disk.interrupt_every != 0) return errno = EINTR, -1;
  if (call == disk.fail_at) {
    if (disk.error_number == 0) return 0;
    return errno = disk.error_number, -1;
  }
  return ::syscall(SYS_pread64, descriptor, out, std::min(size, disk.most_bytes), offset);
}

int main() {
  constexpr int kSmall = 10;
  constexpr int kLarge = 10'000;  // more than one buffer of the reader
  const std::string small = make_file(kSmall);
  const std::string large = make_file(kLarge);
  check(small, kSmall);
  check(large, kLarge);
  disk = {};
  disk.most_bytes = 1;
  load(small, kSmall);
  expect(disk.calls > 1000, "reads were not short");
  std::filesystem::remove(small);
  std::filesystem::remove(large);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

#include "gguf/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "base/error.h"
#include "gguf/text.h"

namespace sterna {
namespace {

[[noreturn]] void fail(const std::string& name, int error_number) {
  // Not strerror(): it is not safe in threads, and follows the locale of the host program.
  throw FileError(name, error_number, std::generic_category().message(error_number));
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a directory";
  if (S_ISFIFO(mode)) return "a FIFO";
  if (S_ISCHR(mode)) return "a character device";
  if (S_ISBLK(mode)) return "a block device";
  if (S_ISSOCK(mode)) return "a socket";
  return "no regular file";
}

}  // namespace

File File::open(const std::string& path) {
  std::string name = printable_path(path);
  if (path.find('\0') != std::string::npos) throw FileError(name, EINVAL, "a path cannot contain a NUL");
  int descriptor = -1;
  do {
    // O_NONBLOCK: opening a FIFO must not wait for its writer. It changes nothing for regular files.
    descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  } while (descriptor < 0 && errno == EINTR);
  if (descriptor < 0) fail(name, errno);
  File file(path, std::move(name), descriptor, 0);

  // The opened descriptor is asked, not the path, which may name another file by now.
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0) fail(file.name_, errno);
  if (!S_ISREG(status.st_mode)) {
    const int error_number = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    throw FileError(file.name_, error_number, std::string("is ") + kind_of(status.st_mode) + ", not a model file");
  }
  file.size_ = static_cast<std::uint64_t>(status.st_size);
  return file;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void File::read_at(std::uint64_t offset, std::span<std::uint8_t> out) const {
  // Callers have checked against size(), which an off_t held.
  while (!out.empty()) {
    constexpr std::size_t kMost = std::size_t{1} << 30;
    const ssize_t n = ::pread(descriptor_, out.data(), std::min(out.size(), kMost), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      fail(name_, errno);
    }
    if (n == 0) {
      throw FileError(name_, EIO,
                      "ends at byte " + std::to_string(offset) + ", but had " + std::to_string(size_) +
                          " bytes when it was opened");
    }
    offset += static_cast<std::uint64_t>(n);
    out = out.subspan(static_cast<std::size_t>(n));
  }
}

}  // namespace sterna

#include "engine/notifier.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <system_error>

#include "base/error.h"

namespace sterna {

Notifier::Notifier() {
  if (pipe(ends_) != 0) throw Error("no descriptor for a notifier: " + std::generic_category().message(errno));
  for (const int end : ends_) {
    fcntl(end, F_SETFL, O_NONBLOCK);
    fcntl(end, F_SETFD, FD_CLOEXEC);
  }
}

Notifier::~Notifier() {
  for (const int end : ends_) close(end);
}

void Notifier::mark(std::uint64_t number) {
  bool first = false;
  {
    const std::lock_guard lock(mutex_);
    first = marked_.empty();
    marked_.push_back(number);
  }
  // One byte per batch of marks. Outside of the lock, which whoever wakes up takes at once; a byte that comes after its
  // marks were taken only wakes in vain. A full pipe is readable, which is all that is wanted.
  if (!first) return;
  const char byte = 0;
  while (write(ends_[1], &byte, 1) < 0 && errno == EINTR) {
  }
}

std::vector<std::uint64_t> Notifier::take() {
  char bytes[64];
  while (read(ends_[0], bytes, sizeof bytes) < 0 && errno == EINTR) {
  }
  std::vector<std::uint64_t> taken;
  const std::lock_guard lock(mutex_);
  taken.swap(marked_);
  return taken;
}

}  // namespace sterna

#include "base/buffer.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <string>

#include "base/error.h"

namespace sterna {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kMapFrom = std::size_t{64} << 10;
constexpr std::size_t kHugeFrom = std::size_t{4} << 20;

std::size_t page_size() {
  static const auto size = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return size;
}

/// Fresh anonymous pages, which are zero; null when there are none.
std::uint8_t* map(std::size_t size) {
  void* p = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return p == MAP_FAILED ? nullptr : static_cast<std::uint8_t*>(p);
}

/// The same at the begin of a huge page: a longer mapping, cut on both sides. What does not fill the last huge page has
/// small ones, so that no more is taken than was asked for.
std::uint8_t* map_huge(std::size_t size) {
  std::uint8_t* whole = map(size + kHugePage);
  if (whole == nullptr) return nullptr;
  const std::size_t before = (kHugePage - reinterpret_cast<std::uintptr_t>(whole) % kHugePage) % kHugePage;
  if (before != 0) ::munmap(whole, before);
  ::munmap(whole + before + size, kHugePage - before);
  ::madvise(whole + before, size, MADV_HUGEPAGE);
  return whole + before;
}

[[noreturn]] void fail(std::size_t size) {
  throw MemoryBudgetError("cannot allocate " + std::to_string(size) + " bytes");
}

}  // namespace

std::size_t physical_memory() {
  const long pages = ::sysconf(_SC_PHYS_PAGES);
  if (pages <= 0) return std::numeric_limits<std::size_t>::max();
  return static_cast<std::size_t>(pages) * page_size();
}

Buffer::Buffer(std::size_t size) : size_(size) {
  if (size == 0) return;
  // The system promises more than it has, and kills whoever takes it at its word.
  if (size > physical_memory()) fail(size);
  if (size < kMapFrom) {
    void* p = ::operator new(size, std::align_val_t{kAlignment}, std::nothrow);
    if (p == nullptr) fail(size);
    std::memset(p, 0, size);
    data_ = static_cast<std::uint8_t*>(p);
    return;
  }
  const std::size_t mapped = (size + page_size() - 1) / page_size() * page_size();
  data_ = size < kHugeFrom ? map(mapped) : map_huge(mapped);
  if (data_ == nullptr) fail(size);
  mapped_ = mapped;
}

void Buffer::release() noexcept {
  if (mapped_ != 0) {
    ::munmap(data_, mapped_);
  } else {
    ::operator delete(data_, std::align_val_t{kAlignment});
  }
}

}  // namespace sterna

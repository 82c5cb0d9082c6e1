#include "base/buffer.h"

#include <sys/mman.h>

#include <cstring>
#include <new>
#include <string>

#include "base/error.h"

namespace sterna {
namespace {
constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kMapFrom = std::size_t{4} << 20;
}  // namespace

Buffer::Buffer(std::size_t size) : size_(size) {
  if (size == 0) return;
  if (size >= kMapFrom) {
    // Fresh anonymous pages are zero; the kernel places large mappings at huge-page boundaries where it can.
    const std::size_t mapped = (size + kHugePage - 1) & ~(kHugePage - 1);
    void* p = mapped < size ? MAP_FAILED
                            : ::mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw MemoryBudgetError("cannot allocate " + std::to_string(size) + " bytes");
    ::madvise(p, mapped, MADV_HUGEPAGE);
    data_ = static_cast<std::uint8_t*>(p);
    mapped_ = mapped;
    return;
  }
  void* p = ::operator new(size, std::align_val_t{kAlignment}, std::nothrow);
  if (p == nullptr) throw MemoryBudgetError("cannot allocate " + std::to_string(size) + " bytes");
  std::memset(p, 0, size);
  data_ = static_cast<std::uint8_t*>(p);
}

void Buffer::release() noexcept {
  if (mapped_ != 0) {
    ::munmap(data_, mapped_);
  } else {
    ::operator delete(data_, std::align_val_t{kAlignment});
  }
}

}  // namespace sterna

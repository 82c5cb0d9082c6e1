/// Buffers of every kind of size: zero, aligned, writable to the last byte, moved without a copy, and refused where no
/// machine could hold them. Meant for the sanitizers.
#include "base/buffer.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <utility>

#include "base/error.h"

namespace {

using namespace sterna;

int failures = 0;

void expect(bool condition, std::size_t size, const char* what) {
  if (condition) return;
  std::printf("%zu bytes: %s\n", size, what);
  ++failures;
}

void check(std::size_t size) {
  Buffer buffer(size);
  expect(buffer.size() == size && buffer.span().size() == size, size, "size");
  const auto address = reinterpret_cast<std::uintptr_t>(buffer.data());
  const std::size_t alignment = size >= (4u << 20) ? 2u << 20 : size >= (64u << 10) ? 4096u : Buffer::kAlignment;
  expect(address % alignment == 0, size, "alignment");
  expect(std::all_of(buffer.data(), buffer.data() + size, [](std::uint8_t byte) { return byte == 0; }), size, "zero");
  std::fill_n(buffer.data(), size, std::uint8_t{0xA5});

  std::uint8_t* data = buffer.data();
  Buffer moved(std::move(buffer));
  expect(moved.data() == data && moved.size() == size, size, "move");
  Buffer assigned(1);
  assigned = std::move(moved);
  expect(assigned.data() == data && (size == 0 || data[size - 1] == 0xA5), size, "move assignment");
}

}  // namespace

int main() {
  constexpr std::size_t kMapped = 64u << 10, kHuge = 4u << 20;
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{63}, kMapped - 1, kMapped, kMapped + 1,
                                 kHuge - 1, kHuge, kHuge + 1, 3 * kHuge + 4097}) {
    check(size);
  }
  const std::size_t most = std::numeric_limits<std::size_t>::max();
  for (const std::size_t size : {physical_memory() + 1, most / 2, most - 4096, most}) {
    try {
      const Buffer buffer(size);
      expect(false, size, "is granted");
    } catch (const MemoryBudgetError&) {
    }
  }
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

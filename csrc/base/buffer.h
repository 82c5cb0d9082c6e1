/// Owned memory, aligned for the widest vector registers. All but small buffers are mappings of their own, so that
/// freeing one gives its memory back to the system at once; large ones ask for huge pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace sterna {

/// Bytes of memory that this machine has.
std::size_t physical_memory();

/// Zero-initialised bytes, aligned to 64, from 64 KiB up to a page, from 4 MiB up to 2 MiB. Pages of a mapping come
/// into being where they are first written, near the thread that does so. Move-only.
class Buffer {
 public:
  static constexpr std::size_t kAlignment = 64;

  Buffer() = default;
  /// Throws MemoryBudgetError when the system gives none, or has less in all.
  explicit Buffer(std::size_t size);
  ~Buffer() { release(); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        mapped_(std::exchange(other.mapped_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
    return *this;
  }

  std::size_t size() const { return size_; }
  std::uint8_t* data() { return data_; }
  const std::uint8_t* data() const { return data_; }
  std::span<std::uint8_t> span() { return {data_, size_}; }
  std::span<const std::uint8_t> span() const { return {data_, size_}; }
  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <class T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

 private:
  void release() noexcept;

  std::uint8_t* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t mapped_ = 0;  // bytes of the mapping; 0 when data_ is from the heap
};

}  // namespace sterna

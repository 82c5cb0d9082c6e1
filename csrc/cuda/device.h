/// The device library and a device: the only place where the core calls it.
#pragma once

#include <cstdint>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "base/error.h"
#include "cuda/device_table.h"

namespace sterna::cuda {

/// Why no device can be used; empty when one can. The library is opened once, at the first call, and devices are listed
/// then, without a context on any.
std::string device_problem();

struct FoundDevice {
  DeviceInfo info;
  std::string problem;  // why it cannot be used; empty when it can
};
/// All devices by their numbers; none where they cannot be listed.
std::span<const FoundDevice> found_devices();

/// "cuda:0 (NVIDIA A10, sm_86)"
std::string device_title(int number, const DeviceInfo& info);

/// Calls `work` in a thread of its own, and returns what it does. For what a caller's thread must not be left with: the
/// device in use is a thread's, and giving the caller's back to it could make a context there.
template <typename Work>
auto in_own_thread(Work work) {
  std::future<decltype(work())> result;
  try {
    result = std::async(std::launch::async, std::move(work));
  } catch (const std::system_error& error) {
    throw DeviceError(std::string("the system gave no thread to use a CUDA device in: ") + error.what());
  }
  return result.get();
}

/// Bytes that a device has free. Makes a context on it, in no thread of the caller's. Throws DeviceError, also where
/// the device cannot run the library's code.
std::uint64_t free_bytes(int number);

/// A device, and the stream that all work of one plan goes through. Not for several threads at a time.
class Device {
 public:
  /// Throws DeviceError.
  explicit Device(int number);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int number() const { return number_; }
  const DeviceInfo& info() const { return info_; }

  /// What follows in this thread is for this device.
  void use() const;
  void copy(void* to, const void* from, std::uint64_t bytes) const;
  void fill_zero(void* memory, std::uint64_t bytes) const;
  /// Waits for all that was asked for.
  void synchronize() const;
  void launch(Kernel kernel, const void* arguments, const Launch& launch) const;
  void* stream() const { return stream_; }
  const DeviceTable& table() const { return table_; }

  /// Throws DeviceError that says what could not be done, unless status is 0.
  void check(Status status, const char* what) const;

 private:
  const DeviceTable& table_;
  const int number_;
  const DeviceInfo info_;
  void* stream_ = nullptr;
};

/// Memory of a device, or of the host where the device reaches it directly.
class DeviceMemory {
 public:
  enum class Where : std::uint8_t { kDevice, kHost };

  DeviceMemory() = default;
  /// Of at least one byte. Throws MemoryBudgetError when the device has less left.
  DeviceMemory(std::shared_ptr<const Device> device, std::uint64_t bytes, Where where = Where::kDevice);
  ~DeviceMemory() { release(); }
  DeviceMemory(DeviceMemory&& other) noexcept
      : device_(std::move(other.device_)),
        data_(std::exchange(other.data_, nullptr)),
        bytes_(std::exchange(other.bytes_, 0)),
        where_(other.where_) {}
  DeviceMemory& operator=(DeviceMemory&& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(where_, other.where_);
    return *this;
  }

  std::uint8_t* data() const { return data_; }
  std::uint64_t size() const { return bytes_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  void release() noexcept;

  std::shared_ptr<const Device> device_;
  std::uint8_t* data_ = nullptr;
  std::uint64_t bytes_ = 0;
  Where where_ = Where::kDevice;
};

}  // namespace sterna::cuda

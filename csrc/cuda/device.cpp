#include "cuda/device.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "base/error.h"

namespace sterna::cuda {
namespace {

constexpr const char* kLibraryName = "libsterna_cuda.so";

/// $STERNA_CUDA_LIBRARY, or the file beside the one that this code is in.
std::string library_path() {
  if (const char* chosen = std::getenv("STERNA_CUDA_LIBRARY"); chosen != nullptr && *chosen != '\0') return chosen;
  Dl_info own;
  static const char kHere = 0;
  if (dladdr(&kHere, &own) == 0 || own.dli_fname == nullptr) return kLibraryName;
  const std::string file = own.dli_fname;
  const std::size_t slash = file.rfind('/');
  return (slash == std::string::npos ? std::string() : file.substr(0, slash + 1)) + kLibraryName;
}

struct Library {
  const DeviceTable* table = nullptr;
  std::string problem;
  std::vector<DeviceInfo> devices;

  Library() {
    const std::string path = library_path();
    // Never closed: the CUDA runtime does not bear it.
    void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* const reason = dlerror();
      problem = std::getenv("STERNA_CUDA_LIBRARY") == nullptr && access_fails(path)
                    ? "this build of sterna has no CUDA library"
                    : std::string("the CUDA library cannot be opened: ") + (reason == nullptr ? path : reason);
      return;
    }
    const auto function = reinterpret_cast<TableFunction>(dlsym(handle, kTableSymbol));
    const DeviceTable* const found = function == nullptr ? nullptr : function();
    if (found == nullptr || found->version != kTableVersion) {
      problem = path + " is the CUDA library of another version of sterna";
      return;
    }
    int count = 0;
    if (const Status status = found->count_devices(&count); status != 0) {
      problem = std::string("no CUDA device can be used: ") + found->error_text(status);
      return;
    }
    for (int number = 0; number < count; ++number) {
      DeviceInfo info{};
      if (const Status status = found->describe_device(number, &info); status != 0) {
        problem = "CUDA device " + std::to_string(number) + " cannot be used: " + found->error_text(status);
        return;
      }
      devices.push_back(info);
    }
    if (devices.empty()) problem = "there is no CUDA device";
    if (problem.empty()) table = found;
  }

  static bool access_fails(const std::string& path) {
    std::FILE* const file = std::fopen(path.c_str(), "rb");
    if (file != nullptr) std::fclose(file);
    return file == nullptr;
  }
};

const Library& library() {
  static const Library opened;
  return opened;
}

const DeviceTable& table_for(int number) {
  if (library().table == nullptr) throw DeviceError(library().problem);
  if (number < 0 || static_cast<std::size_t>(number) >= library().devices.size()) {
    throw DeviceError("there is no CUDA device " + std::to_string(number) + ", but " +
                      std::to_string(library().devices.size()));
  }
  return *library().table;
}

}  // namespace

std::string device_problem() { return library().problem; }

std::vector<DeviceInfo> device_infos() {
  std::vector<DeviceInfo> infos = library().table == nullptr ? std::vector<DeviceInfo>() : library().devices;
  for (std::size_t i = 0; i < infos.size(); ++i) {  // what is free changes
    library().table->describe_device(static_cast<int>(i), &infos[i]);
  }
  return infos;
}

Device::Device(int number) : table_(table_for(number)), number_(number) {
  check(table_.describe_device(number, &info_), "looking at it");
  use();
  check(table_.create_stream(&stream_), "making a stream");
}

Device::~Device() {
  table_.use_device(number_);
  table_.destroy_stream(stream_);
}

void Device::check(Status status, const char* what) const {
  if (status == 0) return;
  throw DeviceError("CUDA device " + std::to_string(number_) + ", " + what + ": " + table_.error_text(status));
}

void Device::use() const { check(table_.use_device(number_), "choosing it"); }

void Device::copy(void* to, const void* from, std::uint64_t bytes) const {
  if (bytes > 0) check(table_.copy(to, from, bytes, stream_), "copying");
}

void Device::fill_zero(void* memory, std::uint64_t bytes) const {
  if (bytes > 0) check(table_.fill_zero(memory, bytes, stream_), "clearing memory");
}

void Device::synchronize() const { check(table_.synchronize(stream_), "running kernels"); }

void Device::launch(Kernel kernel, const void* arguments, const Launch& launch) const {
  check(table_.launchers[static_cast<int>(kernel)](arguments, launch), "launching a kernel");
}

DeviceMemory::DeviceMemory(std::shared_ptr<const Device> device, std::uint64_t bytes, Where where)
    : device_(std::move(device)), bytes_(std::max<std::uint64_t>(bytes, 1)), where_(where) {
  device_->use();
  const DeviceTable& table = device_->table();
  void* memory = nullptr;
  const Status status =
      where == Where::kDevice ? table.allocate(bytes_, &memory) : table.allocate_host(bytes_, &memory);
  if (status != 0) {
    throw MemoryBudgetError(std::to_string(bytes_) + " bytes of " +
                            (where == Where::kDevice ? "CUDA device " + std::to_string(device_->number()) + "'s memory"
                                                     : std::string("page-locked memory")) +
                            " could not be had: " + table.error_text(status));
  }
  data_ = static_cast<std::uint8_t*>(memory);
}

void DeviceMemory::release() noexcept {
  if (data_ == nullptr) return;
  const DeviceTable& table = device_->table();
  table.use_device(device_->number());
  if (where_ == Where::kDevice) {
    table.release(data_);
  } else {
    table.release_host(data_);
  }
  data_ = nullptr;
}

}  // namespace sterna::cuda

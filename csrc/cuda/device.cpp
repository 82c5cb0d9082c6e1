#include "cuda/device.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "cuda/architectures.h"

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
  std::vector<FoundDevice> devices;

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
    if (count < 1) {
      problem = "there is no CUDA device";
      return;
    }
    table = found;
    bool is_any_usable = false;
    for (int number = 0; number < count; ++number) {
      FoundDevice& device = devices.emplace_back();
      device.problem = look_at(number, device.info);
      is_any_usable = is_any_usable || device.problem.empty();
      if (!device.problem.empty()) problem += (problem.empty() ? "" : "; ") + device.problem;
    }
    if (is_any_usable) problem.clear();
  }

  /// Why the device cannot be used.
  std::string look_at(int number, DeviceInfo& info) const {
    if (const Status status = table->describe_device(number, &info); status != 0) {
      return "cuda:" + std::to_string(number) + ": it cannot be used: " + table->error_text(status);
    }
    const int architecture = 10 * info.major + info.minor;
    if (architecture < kOldestArchitecture) {
      return device_title(number, info) + ": it is older than sm_" + std::to_string(kOldestArchitecture);
    }
    if (!has_code(table->compiled, info.major, info.minor)) {
      return device_title(number, info) +
             ": the library has no code for it; build with STERNA_CUDA_ARCHITECTURES=" + std::to_string(architecture);
    }
    return {};
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
  const std::string& problem = library().devices[static_cast<std::size_t>(number)].problem;
  if (!problem.empty()) throw DeviceError(problem);
  return *library().table;
}

void check_status(const DeviceTable& table, int number, Status status, const char* what) {
  if (status == 0) return;
  throw DeviceError("CUDA device " + std::to_string(number) + ", " + what + ": " + table.error_text(status));
}

/// Makes it the thread's, where it can run the library's code.
void use_checked(const DeviceTable& table, int number) {
  check_status(table, number, table.use_device(number), "choosing it");
  check_status(table, number, table.check_code(), "loading kernels");
}

}  // namespace

std::string device_problem() { return library().problem; }

std::span<const FoundDevice> found_devices() { return library().devices; }

std::string device_title(int number, const DeviceInfo& info) {
  return "cuda:" + std::to_string(number) + " (" + info.name + ", sm_" + std::to_string(info.major) +
         std::to_string(info.minor) + ")";
}

std::uint64_t free_bytes(int number) {
  const DeviceTable& table = table_for(number);
  return in_own_thread([&] {
    use_checked(table, number);
    std::uint64_t bytes = 0;
    check_status(table, number, table.free_bytes(&bytes), "looking at its memory");
    return bytes;
  });
}

Device::Device(int number)
    : table_(table_for(number)), number_(number), info_(found_devices()[static_cast<std::size_t>(number)].info) {
  use_checked(table_, number_);
  check(table_.create_stream(&stream_), "making a stream");
}

Device::~Device() {
  table_.use_device(number_);
  table_.destroy_stream(stream_);
}

void Device::check(Status status, const char* what) const { check_status(table_, number_, status, what); }

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

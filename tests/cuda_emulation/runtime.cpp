/// The device library's table where kernels run on a CPU: devices whose memory is the heap. Runs are complete when a
/// launch returns; graphs are refused, as the core must be able to do without. A test may ask for other devices:
///   STERNA_EMULATION_DEVICES   compute capabilities ("9.0 7.5"; default: one, 9.0)
///   STERNA_EMULATION_FREE      bytes that each has free, and gives ("1000000 2000000"; default: 2 GiB)
///   STERNA_EMULATION_COMPILED  what the library says that it has code for, whatever it has
///   STERNA_EMULATION_BROKEN    numbers of devices that cannot run the library's code, which only they can tell
#include <algorithm>
#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/device_table.h"
#include "cuda/kernels/launchers.h"
#include "emulator.h"

namespace sterna::cuda {
namespace {

constexpr Status kNoDevice = 1;
constexpr Status kOutOfMemory = 2;
constexpr Status kNoGraphs = 3;
constexpr Status kNoCode = 4;
constexpr std::uint64_t kMemory = std::uint64_t{2} << 30;
constexpr int kMaxDevices = 8;

/// The words of an environment variable.
std::vector<std::string> words_of(const char* variable) {
  const char* const text = std::getenv(variable);
  std::istringstream stream(text == nullptr ? "" : text);
  std::vector<std::string> words;
  for (std::string word; stream >> word;) words.push_back(word);
  return words;
}

struct EmulatedDevice {
  int major = 9, minor = 0;
  std::uint64_t free = kMemory;
  bool is_broken = false;
};

const std::vector<EmulatedDevice>& devices() {
  static const std::vector<EmulatedDevice> found = [] {
    std::vector<EmulatedDevice> list;
    for (const std::string& capability : words_of("STERNA_EMULATION_DEVICES")) {
      EmulatedDevice& device = list.emplace_back();
      std::sscanf(capability.c_str(), "%d.%d", &device.major, &device.minor);
    }
    if (list.empty()) list.emplace_back();
    list.resize(std::min<std::size_t>(list.size(), kMaxDevices));
    const std::vector<std::string> free = words_of("STERNA_EMULATION_FREE");
    for (std::size_t i = 0; i < std::min(free.size(), list.size()); ++i) list[i].free = std::stoull(free[i]);
    for (const std::string& number : words_of("STERNA_EMULATION_BROKEN")) list.at(std::stoul(number)).is_broken = true;
    return list;
  }();
  return found;
}

thread_local int current = 0;
std::array<std::atomic<int>, kMaxDevices> contexts{};

/// What most functions of the CUDA runtime do first: the device in use has a context from then on.
const EmulatedDevice& device_in_use() {
  contexts[static_cast<std::size_t>(current)].store(1);
  return devices()[static_cast<std::size_t>(current)];
}

const char* error_text(Status status) {
  return status == kNoDevice      ? "there is no such device"
         : status == kOutOfMemory ? "out of memory"
         : status == kNoCode      ? "no kernel image is available"
                                  : "not supported";
}
Status count_devices(int* count) {
  *count = static_cast<int>(devices().size());
  return 0;
}
Status describe_device(int number, DeviceInfo* info) {
  const EmulatedDevice& device = devices()[static_cast<std::size_t>(number)];
  *info = {"emulated", device.major, device.minor, 2, kMemory, std::uint64_t{227} << 10};
  return 0;
}
Status use_device(int number) {
  if (number < 0 || number >= static_cast<int>(devices().size())) return kNoDevice;
  current = number;
  const bool is_sm75 = device_in_use().major == 7;
  cuda_emulation::max_shared_bytes = is_sm75 ? cuda_emulation::kSharedBytesSm75 : cuda_emulation::kSharedBytesSm90;
  return 0;
}
Status check_code() { return device_in_use().is_broken ? kNoCode : 0; }
Status free_bytes(std::uint64_t* bytes) {
  *bytes = device_in_use().free;
  return 0;
}
Status create_stream(void** stream) {
  device_in_use();
  *stream = std::malloc(1);
  return 0;
}
Status destroy_stream(void* stream) {
  std::free(stream);
  return 0;
}
Status synchronize(void*) { return 0; }
Status allocate(std::uint64_t bytes, void** memory) {
  *memory = bytes > device_in_use().free ? nullptr : std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*memory == nullptr) return kOutOfMemory;
  std::memset(*memory, 0xA5, bytes);
  return 0;
}
Status release(void* memory) {
  std::free(memory);
  return 0;
}
Status copy(void* to, const void* from, std::uint64_t bytes, void*) {
  std::memcpy(to, from, bytes);
  return 0;
}
Status fill_zero(void* memory, std::uint64_t bytes, void*) {
  std::memset(memory, 0, bytes);
  return 0;
}
Status begin_graph(void*) { return kNoGraphs; }
Status end_graph(void*, void**) { return kNoGraphs; }
Status launch_graph(void*, void*) { return kNoGraphs; }
Status destroy_graph(void*) { return 0; }

DeviceTable make_table() {
  static const char* const kCompiled = std::getenv("STERNA_EMULATION_COMPILED");
  DeviceTable table = {kTableVersion,   kCompiled == nullptr ? "" : kCompiled,
                       error_text,      count_devices,
                       describe_device, use_device,
                       check_code,      free_bytes,
                       create_stream,   destroy_stream,
                       synchronize,     allocate,
                       release,         allocate,
                       release,         copy,
                       fill_zero,       begin_graph,
                       end_graph,       launch_graph,
                       destroy_graph,   {}};
  std::copy_n(kLaunchers, kNumKernels, table.launchers);
  return table;
}

}  // namespace

/// For tests: the device that the calling thread uses, and whether a device has a context.
extern "C" __attribute__((visibility("default"))) int sterna_emulation_current() { return current; }
extern "C" __attribute__((visibility("default"))) int sterna_emulation_has_context(int number) {
  return contexts.at(static_cast<std::size_t>(number)).load();
}

extern "C" __attribute__((visibility("default"))) const DeviceTable* sterna_cuda_table() {
  static const DeviceTable table = make_table();
  return &table;
}

}  // namespace sterna::cuda

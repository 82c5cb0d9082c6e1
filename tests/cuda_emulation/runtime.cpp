/// The device library's table where kernels run on a CPU: one device whose memory is the heap. Runs are complete when
/// a launch returns; graphs are refused, as the core must be able to do without.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "cuda/device_table.h"
#include "cuda/kernels/launchers.h"

namespace sterna::cuda {
namespace {

constexpr Status kOutOfMemory = 2;
constexpr Status kNoGraphs = 3;
constexpr std::uint64_t kMemory = std::uint64_t{2} << 30;

const char* error_text(Status status) { return status == kOutOfMemory ? "out of memory" : "not supported"; }
Status count_devices(int* count) {
  *count = 1;
  return 0;
}
Status describe_device(int, DeviceInfo* info) {
  *info = {"emulated", 9, 0, 2, kMemory, kMemory};
  return 0;
}
Status use_device(int device) { return device == 0 ? 0 : 1; }
Status create_stream(void** stream) {
  *stream = std::malloc(1);
  return 0;
}
Status destroy_stream(void* stream) {
  std::free(stream);
  return 0;
}
Status synchronize(void*) { return 0; }
Status allocate(std::uint64_t bytes, void** memory) {
  *memory = bytes > kMemory ? nullptr : std::aligned_alloc(256, (bytes + 255) / 256 * 256);
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
  DeviceTable table = {
      kTableVersion, error_text, count_devices, describe_device, use_device, create_stream, destroy_stream,
      synchronize,   allocate,   release,       allocate,        release,    copy,          fill_zero,
      begin_graph,   end_graph,  launch_graph,  destroy_graph,   {}};
  std::copy_n(kLaunchers, kNumKernels, table.launchers);
  return table;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const DeviceTable* sterna_cuda_table() {
  static const DeviceTable table = make_table();
  return &table;
}

}  // namespace sterna::cuda

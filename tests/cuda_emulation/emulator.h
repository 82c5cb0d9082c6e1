/// Runs CUDA kernels on the CPU, one block after the other: each thread of a block is a fiber, which runs until it
/// waits for others. Slow and simple: it shows that a kernel computes what it should, and with the address sanitizer
/// that it stays within its memory; it shows nothing about speed.
///
/// Races show as wrong results where the order of threads brings them out: $STERNA_EMULATION_ORDER is "forward" (what
/// stands first goes first), "reverse", or a number that any thread is drawn by at each turn. Copies in the background
/// happen as late as they may, and until then their target holds rubbish.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace sterna::cuda_emulation {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

/// Of the fiber that runs.
struct Thread {
  Dim3 index;
  int warp = 0;
  int lane = 0;
};
extern Thread* current_thread;
extern Dim3 block_index, block_size, grid_size;

/// Shared memory that a block may have on the device that is emulated.
extern int max_shared_bytes;
constexpr int kSharedBytesSm75 = 64 << 10, kSharedBytesSm90 = 227 << 10;

/// Calls `kernel` for every thread of every block of the grid. Throws std::logic_error when threads wait for some that
/// have ended or wait elsewhere.
void run_grid(Dim3 grid, Dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel);

std::uint8_t* shared_memory();

/// Waits for all threads of the block that have not ended.
void wait_for_block();

/// Waits for all lanes of the warp, then gives what each of them handed in, `bytes` a lane; valid until the lane's next
/// call.
const std::uint8_t* exchange(const void* mine, std::size_t bytes);

/// A copy in the background, groups of them, and until when all groups but the last `left` must be there.
void copy_later(void* to, const void* from, std::size_t bytes);
void end_copy_group();
void wait_for_copies(int left);

}  // namespace sterna::cuda_emulation

/// Fibers, the warps and blocks that they wait in, and grids run one block after the other.
#include "emulator.h"

#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define STERNA_FIBER_SANITIZER
#endif

namespace sterna::cuda_emulation {

Thread* current_thread = nullptr;
Dim3 block_index, block_size, grid_size;
int max_shared_bytes = kSharedBytesSm90;

namespace {

constexpr std::size_t kStackBytes = 256 << 10;
constexpr int kWarp = 32;
constexpr std::size_t kExchangeBytes = 64;

enum class Wait : std::uint8_t { kNothing, kBlock, kWarp, kEnded };

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

struct Fiber {
  Thread thread;
  ucontext_t context;
  std::jmp_buf here;  // where it goes on, once it has begun
  bool has_begun = false;
  std::unique_ptr<std::uint8_t[]> stack = std::make_unique<std::uint8_t[]>(kStackBytes);
  Wait waits = Wait::kNothing;
  unsigned phase = 0;                    // exchanges so far
  std::deque<std::vector<Copy>> copies;  // by group, the last one open
};

/// What the lanes of a warp hand in: two sets, since a lane may be one exchange ahead of one that still reads.
struct Warp {
  int arrived = 0;
  alignas(16) std::uint8_t values[2][kWarp * kExchangeBytes];
};

std::deque<Fiber> fibers;  // reused from block to block
std::vector<Warp> warps;
std::uint8_t* shared_of_block = nullptr;
const std::function<void()>* kernel_to_run = nullptr;
Fiber* running = nullptr;
#ifdef STERNA_FIBER_SANITIZER
ucontext_t scheduler;
const void* scheduler_stack = nullptr;
std::size_t scheduler_stack_bytes = 0;
void* scheduler_fake_stack = nullptr;
#else
std::jmp_buf scheduler_here;
#endif

void to_scheduler([[maybe_unused]] bool for_good) {
  Fiber* const self = running;
#ifdef STERNA_FIBER_SANITIZER
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake_stack, scheduler_stack, scheduler_stack_bytes);
  swapcontext(&self->context, &scheduler);
  __sanitizer_finish_switch_fiber(fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#else  // the same without system calls
  if (_setjmp(self->here) == 0) _longjmp(scheduler_here, 1);
#endif
}

void fiber_main() {
#ifdef STERNA_FIBER_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  (*kernel_to_run)();
  running->waits = Wait::kEnded;
  to_scheduler(true);
}

void resume(Fiber& fiber) {
  running = &fiber;
  current_thread = &fiber.thread;
#ifdef STERNA_FIBER_SANITIZER
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber.stack.get(), kStackBytes);
  swapcontext(&scheduler, &fiber.context);
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#else
  if (_setjmp(scheduler_here) != 0) return;
  if (fiber.has_begun) _longjmp(fiber.here, 1);
  fiber.has_begun = true;
  setcontext(&fiber.context);
#endif
}

void start(Fiber& fiber, unsigned number) {
  fiber.thread.index = {number % block_size.x, number / block_size.x % block_size.y,
                        number / (block_size.x * block_size.y)};
  fiber.thread.warp = static_cast<int>(number) / kWarp;
  fiber.thread.lane = static_cast<int>(number) % kWarp;
  fiber.waits = Wait::kNothing;
  fiber.phase = 0;
  fiber.has_begun = false;
  fiber.copies.assign(1, {});
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, fiber_main, 0);
}

/// In which order threads that could run do so.
class Order {
 public:
  Order() {
    const char* const chosen = std::getenv("STERNA_EMULATION_ORDER");
    const std::string name = chosen == nullptr ? "forward" : chosen;
    is_reverse_ = name == "reverse";
    is_random_ = !is_reverse_ && name != "forward";
    if (is_random_) random_.seed(static_cast<unsigned>(std::stoul(name)));
  }

  /// Calls fn(thread) for all of `count`, in this turn's order.
  template <class Fn>
  void each(unsigned count, Fn fn) {
    numbers_.resize(count);
    std::iota(numbers_.begin(), numbers_.end(), 0u);
    if (is_reverse_) std::reverse(numbers_.begin(), numbers_.end());
    if (is_random_) std::shuffle(numbers_.begin(), numbers_.end(), random_);
    for (const unsigned number : numbers_) fn(number);
  }

 private:
  bool is_reverse_, is_random_;
  std::mt19937 random_;
  std::vector<unsigned> numbers_;
};

void run_block(unsigned count) {
  static Order order;
  while (fibers.size() < count) fibers.emplace_back();
  warps.assign((count + kWarp - 1) / kWarp, Warp());
  for (unsigned i = 0; i < count; ++i) start(fibers[i], i);
  for (;;) {
    bool progress = false;
    unsigned ended = 0, at_barrier = 0;
    order.each(count, [&](unsigned i) {
      Fiber& fiber = fibers[i];
      if (fiber.waits == Wait::kNothing) {
        resume(fiber);
        progress = true;
      }
    });
    for (unsigned i = 0; i < count; ++i) {
      ended += fibers[i].waits == Wait::kEnded;
      at_barrier += fibers[i].waits == Wait::kBlock;
    }
    if (ended == count) return;
    if (ended + at_barrier == count) {
      for (unsigned i = 0; i < count; ++i) {
        if (fibers[i].waits == Wait::kBlock) fibers[i].waits = Wait::kNothing;
      }
      continue;
    }
    if (!progress) throw std::logic_error("a kernel's threads wait for each other at different places");
  }
}

}  // namespace

std::uint8_t* shared_memory() { return shared_of_block; }

void wait_for_block() {
  running->waits = Wait::kBlock;
  to_scheduler(false);
}

const std::uint8_t* exchange(const void* mine, std::size_t bytes) {
  if (bytes > kExchangeBytes) throw std::logic_error("too much for an exchange");
  Fiber& fiber = *running;
  Warp& warp = warps[static_cast<std::size_t>(fiber.thread.warp)];
  std::uint8_t* const values = warp.values[fiber.phase++ % 2];
  std::memcpy(values + static_cast<std::size_t>(fiber.thread.lane) * bytes, mine, bytes);
  if (++warp.arrived == kWarp) {
    warp.arrived = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      Fiber& other = fibers[static_cast<std::size_t>(fiber.thread.warp * kWarp + lane)];
      if (&other != &fiber) other.waits = Wait::kNothing;
    }
  } else {
    fiber.waits = Wait::kWarp;
    to_scheduler(false);
  }
  return values;
}

void copy_later(void* to, const void* from, std::size_t bytes) {
  std::memset(to, 0xA5, bytes);
  running->copies.back().push_back({to, from, bytes});
}

void end_copy_group() { running->copies.emplace_back(); }

void wait_for_copies(int left) {
  auto& groups = running->copies;
  while (groups.size() > static_cast<std::size_t>(left) + 1) {
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
    groups.pop_front();
  }
}

void run_grid(Dim3 grid, Dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
  const unsigned count = block.x * block.y * block.z;
  if (count % kWarp != 0) throw std::logic_error("a block is not made of whole warps");
  grid_size = grid;
  block_size = block;
  kernel_to_run = &kernel;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {x, y, z};
        // A new one each time, of the exact size: the address sanitizer sees its ends.
        const std::unique_ptr<std::uint8_t[]> shared(new std::uint8_t[shared_bytes]);
        std::memset(shared.get(), 0xA5, shared_bytes);
        shared_of_block = shared.get();
        run_block(count);
      }
    }
  }
}

}  // namespace sterna::cuda_emulation

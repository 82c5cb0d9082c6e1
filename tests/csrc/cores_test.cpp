/// Processors worth a worker: one per core, fast ones only, whatever a system says about itself.
#include "cpu/cores.h"

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

namespace {

using sterna::cpu::worker_cpus;
namespace fs = std::filesystem;

int failures = 0;

void expect(const std::vector<int>& got, const std::vector<int>& want, const char* what) {
  if (got == want) return;
  ++failures;
  std::printf("%s:", what);
  for (const int cpu : got) std::printf(" %d", cpu);
  std::printf("\n");
}

void write(const fs::path& path, const std::string& text) {
  fs::create_directories(path.parent_path());
  std::ofstream(path) << text << "\n";
}

void describe(const fs::path& root, int cpu, int package, int core) {
  const fs::path topology = root / "system/cpu" / ("cpu" + std::to_string(cpu)) / "topology";
  write(topology / "physical_package_id", std::to_string(package));
  write(topology / "core_id", std::to_string(core));
}

}  // namespace

int main() {
  std::string pattern = (fs::temp_directory_path() / "sterna-cores-XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) return 1;
  const fs::path root = pattern;

  expect(worker_cpus({0, 1, 5}, root / "nothing"), {0, 1, 5}, "a system that says nothing");

  // Two packages of two cores with two threads each.
  const fs::path servers = root / "server";
  for (int cpu = 0; cpu < 8; ++cpu) describe(servers, cpu, cpu / 4, cpu / 2 % 2);
  expect(worker_cpus({0, 1, 2, 3, 4, 5, 6, 7}, servers), {0, 2, 4, 6}, "one thread a core");
  expect(worker_cpus({1, 3, 6, 7}, servers), {1, 3, 6}, "of those that are allowed");

  // Cores 0 and 1 are fast and have two threads; cores 2 to 5 are slow.
  const fs::path hybrid = root / "hybrid";
  for (int cpu = 0; cpu < 4; ++cpu) describe(hybrid, cpu, 0, cpu / 2);
  for (int cpu = 4; cpu < 8; ++cpu) describe(hybrid, cpu, 0, cpu - 2);
  write(hybrid / "cpu_core/cpus", "0-3");
  expect(worker_cpus({0, 1, 2, 3, 4, 5, 6, 7}, hybrid), {0, 2}, "fast cores");
  expect(worker_cpus({4, 5, 6}, hybrid), {4, 5, 6}, "slow cores where no other is allowed");
  for (const char* text : {"", "x", "0-", "-", "9-4", "1-2-3", ",,", "99999999999"}) {
    write(hybrid / "cpu_core/cpus", text);
    expect(worker_cpus({4, 5, 6}, hybrid), {4, 5, 6}, text);
  }
  write(hybrid / "cpu_core/cpus", "5,7-8");
  expect(worker_cpus({4, 5, 6, 7}, hybrid), {5, 7}, "a list");

  const fs::path group = root / "group";
  expect({sterna::cpu::cpu_quota(group)}, {0}, "no control group");
  for (const auto& [text, want] : {std::pair{"max 100000", 0},
                                   {"150000 100000", 2},
                                   {"100000 100000", 1},
                                   {"5 100000", 1},
                                   {"-1 100000", 0},
                                   {"100000", 0},
                                   {"x y", 0},
                                   {"400000 0", 0}}) {
    write(group / "cpu.max", text);
    expect({sterna::cpu::cpu_quota(group)}, {want}, text);
  }
  fs::remove(group / "cpu.max");
  write(group / "cpu/cpu.cfs_quota_us", "250000");
  write(group / "cpu/cpu.cfs_period_us", "100000");
  expect({sterna::cpu::cpu_quota(group)}, {3}, "version 1");

  fs::remove_all(root);
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

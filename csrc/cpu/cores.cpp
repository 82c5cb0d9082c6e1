#include "cpu/cores.h"

#include <algorithm>
#include <charconv>
#include <fstream>
#include <iterator>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__linux__)
#include <sched.h>
#endif

namespace sterna::cpu {
namespace {

/// The first line of a file; nothing when it cannot be read.
std::optional<std::string> read_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  return line;
}

std::optional<int> parse(std::string_view text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// "0-3,8" as numbers; what is no number is left out.
std::set<int> parse_list(const std::string& text) {
  constexpr int kMostCpus = 1 << 16;
  std::set<int> numbers;
  std::istringstream parts(text);
  for (std::string part; std::getline(parts, part, ',');) {
    const std::size_t dash = part.find('-');
    const std::optional<int> first = parse(std::string_view(part).substr(0, dash));
    const std::optional<int> last = dash == std::string::npos ? first : parse(std::string_view(part).substr(dash + 1));
    if (!first || !last) continue;
    for (int i = *first; i <= std::min(*last, kMostCpus); ++i) numbers.insert(i);
  }
  return numbers;
}

}  // namespace

std::vector<int> worker_cpus(const std::vector<int>& allowed, const std::filesystem::path& sysfs) {
  std::vector<int> candidates = allowed;
  // Hybrid x86 machines list their performance cores here.
  if (const auto line = read_line(sysfs / "cpu_core" / "cpus")) {
    const std::set<int> fast = parse_list(*line);
    std::vector<int> chosen;
    std::copy_if(allowed.begin(), allowed.end(), std::back_inserter(chosen),
                 [&](int cpu) { return fast.contains(cpu); });
    if (!chosen.empty()) candidates = std::move(chosen);
  }
  std::vector<int> result;
  std::set<std::pair<std::string, std::string>> cores;
  for (const int cpu : candidates) {
    const auto topology = sysfs / "system" / "cpu" / ("cpu" + std::to_string(cpu)) / "topology";
    const auto package = read_line(topology / "physical_package_id");
    const auto core = read_line(topology / "core_id");
    if (!package || !core || cores.emplace(*package, *core).second) result.push_back(cpu);
  }
  return result;
}

int cpu_quota(const std::filesystem::path& cgroup) {
  std::string quota;
  std::string period;
  if (const auto line = read_line(cgroup / "cpu.max")) {
    std::istringstream(*line) >> quota >> period;
  } else {
    quota = read_line(cgroup / "cpu" / "cpu.cfs_quota_us").value_or("");
    period = read_line(cgroup / "cpu" / "cpu.cfs_period_us").value_or("");
  }
  const std::optional<int> granted = parse(quota);
  const std::optional<int> of = parse(period);
  if (!granted || !of || *granted <= 0 || *of <= 0) return 0;
  return (*granted - 1) / *of + 1;
}

int available_cpus() {
  std::vector<int> allowed;
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) {
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &set)) allowed.push_back(cpu);
    }
  }
#endif
  if (allowed.empty()) return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const int cpus = static_cast<int>(worker_cpus(allowed, "/sys/devices").size());
  const int quota = cpu_quota("/sys/fs/cgroup");
  return quota == 0 ? cpus : std::min(cpus, quota);
}

}  // namespace sterna::cpu

/// Which processors are worth a worker each.
#pragma once

#include <filesystem>
#include <vector>

namespace sterna::cpu {

/// Of the logical processors `allowed`: one per physical core, and of a machine with performance and efficiency cores
/// the performance cores, unless none is allowed. A second thread of a core shares its vector units, and a slow core
/// is waited for at the end of every step. `sysfs` is where Linux describes processors (/sys/devices); where that says
/// nothing, all are taken.
std::vector<int> worker_cpus(const std::vector<int>& allowed, const std::filesystem::path& sysfs);

/// How many processors' time the control group grants, rounded up; 0 when there is no limit. `cgroup` is where it is
/// mounted (/sys/fs/cgroup), version 1 or 2.
int cpu_quota(const std::filesystem::path& cgroup);

/// How many workers a plan has when nobody says: of the processors that this process may run on, those above, and no
/// more than the quota.
int available_cpus();

}  // namespace sterna::cpu

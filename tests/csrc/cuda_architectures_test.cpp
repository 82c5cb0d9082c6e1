/// Which devices a list of architectures has code for.
#include <cstdio>

#include "cuda/architectures.h"

namespace {

struct Case {
  const char* compiled;
  int major, minor;
  bool has_code;
};

constexpr Case kCases[] = {
    // Machine code runs on later minor versions of its major one, and nowhere else.
    {"90-real", 9, 0, true},
    {"90-real", 8, 6, false},
    {"90-real", 10, 0, false},
    {"80-real", 8, 9, true},
    {"86-real", 8, 0, false},
    {"100-real", 10, 3, true},
    {"120-real", 12, 1, true},
    {"120-real", 10, 0, false},
    // PTX is compiled for anything later.
    {"80-virtual", 8, 0, true},
    {"80-virtual", 12, 0, true},
    {"80-virtual", 7, 5, false},
    {"100-virtual", 9, 0, false},
    // Without a word it is both.
    {"90", 9, 0, true},
    {"90", 12, 0, true},
    {"90", 8, 9, false},
    // Code for one device, or for one major version.
    {"90a-real", 9, 0, true},
    {"90a-real", 10, 0, false},
    {"90a", 10, 0, false},
    {"90a-virtual", 10, 0, false},
    {"100f-real", 10, 3, true},
    {"100f", 10, 3, true},
    {"100f", 12, 0, false},
    {"103f", 10, 0, false},
    // Lists.
    {"75-real 80-real 86-real 89-real 90-real 100-real 120", 7, 5, true},
    {"75-real 80-real 86-real 89-real 90-real 100-real 120", 8, 7, true},
    {"75-real 80-real 86-real 89-real 90-real 100-real 120", 11, 0, false},
    {"75-real 80-real 86-real 89-real 90-real 100-real 120", 12, 1, true},
    {"75-real 80-real 86-real 89-real 90-real 100-real 120", 13, 0, true},
    {"75-real 80-real 86-real 89-real 90-real 100-real 120", 7, 2, false},
    {" 75-real  90-real ", 9, 0, true},
    // Nobody knows.
    {"", 8, 6, true},
    {" ", 8, 6, true},
    {"native", 8, 6, true},
    {"90-real all", 8, 6, true},
};

}  // namespace

int main() {
  int failures = 0;
  for (const Case& c : kCases) {
    if (sterna::cuda::has_code(c.compiled, c.major, c.minor) == c.has_code) continue;
    std::printf("\"%s\" on %d.%d: %s expected\n", c.compiled, c.major, c.minor, c.has_code ? "code" : "none");
    ++failures;
  }
  if (failures == 0) std::printf("OK\n");
  return failures == 0 ? 0 : 1;
}

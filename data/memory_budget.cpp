#include "data/memory_budget.h"

#include <fstream>
#include <stdexcept>
#include <string>

namespace scone {

std::int64_t private_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t kilobytes = 0;
    if (word == "RssAnon:" && status >> kilobytes) return kilobytes * 1024;
  }
  throw std::runtime_error("/proc/self/status: no RssAnon; the memory in use is not known");
}

}  // namespace scone

#include "data/memory_budget.h"

#include <fstream>
#include <stdexcept>
#include <string>

namespace scone {

namespace {

/// A line of /proc/self/status, in bytes.
std::int64_t status_bytes(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    std::int64_t kilobytes = 0;
    if (word == name + ":" && status >> kilobytes) return kilobytes * 1024;
  }
  throw std::runtime_error("/proc/self/status: no " + name + "; the memory in use is not known");
}

}  // namespace

std::int64_t private_memory_bytes() { return status_bytes("RssAnon"); }

std::int64_t peak_memory_bytes() { return status_bytes("VmHWM"); }

}  // namespace scone

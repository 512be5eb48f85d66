// Runs all tests in one process, then compares the kernels in the sources with those launched.
#include <gtest/gtest.h>

#include <cctype>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include "block_runner.h"

#if defined(__SANITIZE_ADDRESS__)
// MPI and OpenMP keep memory to the end.
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
#endif

namespace {

/// Names of the functions declared with __global__ in a source: after it and __launch_bounds__(..)
/// the word before the first parenthesis.
void add_kernels(const std::string& source, std::set<std::string>& names) {
  const std::string global = "__global__", bounds = "__launch_bounds__";
  for (std::size_t at = source.find(global); at != std::string::npos;
       at = source.find(global, at)) {
    at += global.size();
    const std::size_t first = source.find('(', at), bounds_at = source.find(bounds, at);
    std::size_t open = first;
    if (bounds_at < first) {
      int depth = 0;
      do {
        depth += source.at(open) == '(' ? 1 : source.at(open) == ')' ? -1 : 0;
        ++open;
      } while (depth > 0);
      open = source.find('(', open);
    }
    std::size_t begin = open;
    while (std::isalnum(static_cast<unsigned char>(source.at(begin - 1))) != 0 ||
           source.at(begin - 1) == '_') {
      --begin;
    }
    names.insert(source.substr(begin, open - begin));
  }
}

std::set<std::string> kernels_in_sources() {
  std::set<std::string> names;
  std::istringstream folders(SCONE_KERNEL_FOLDERS);
  for (std::string folder; std::getline(folders, folder, ':');) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() != ".cu" && entry.path().extension() != ".h") continue;
      std::ifstream file(entry.path());
      std::ostringstream text;
      text << file.rdbuf();
      add_kernels(text.str(), names);
    }
  }
  return names;
}

/// "scone::cuda::{anonymous}::fill_kernel<float>" -> "fill_kernel"
std::string bare_name(std::string name) {
  name = name.substr(0, name.find('<'));
  const std::size_t colons = name.rfind("::");
  return colons == std::string::npos ? name : name.substr(colons + 2);
}

int check_all_kernels_ran() {
  std::set<std::string> launched;
  for (const std::string& name : cuda_on_host::launched_kernels()) launched.insert(bare_name(name));
  const std::set<std::string> kernels = kernels_in_sources();
  int missing = 0;
  for (const std::string& name : kernels) {
    if (launched.contains(name)) continue;
    ++missing;
    std::printf("[  FAILED  ] kernel %s was not launched by any test\n", name.c_str());
  }
  std::printf("%zu kernels in the sources, %d not launched; %zu instances were launched\n",
              kernels.size(), missing, cuda_on_host::launched_kernels().size());
  return missing > 0 || kernels.empty() ? 1 : 0;
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  if (GTEST_FLAG_GET(list_tests)) return RUN_ALL_TESTS();
  std::printf("orders of blocks and threads: SCONE_CUDA_ON_HOST_SEED=%llu\n",
              static_cast<unsigned long long>(cuda_on_host::order_seed()));
  const int failed = RUN_ALL_TESTS();
  const bool all_tests = GTEST_FLAG_GET(filter) == "*";
  return failed != 0 || !all_tests ? failed : check_all_kernels_ran();
}

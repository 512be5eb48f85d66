#include <cctype>
#include <cstdlib>
#include <string>
#include <string_view>

#include "model/ops/cpu/instruction_set.h"
#include "parallel/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "model/ops/cpu/cpu_backend.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "model/ops/ops.h"

HWY_BEFORE_NAMESPACE();
namespace scone::HWY_NAMESPACE {
Backend& own_backend();  // optimizer.cpp
std::int64_t own_target() { return HWY_TARGET; }
}  // namespace scone::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace scone {
namespace {

HWY_EXPORT(own_backend);
HWY_EXPORT(own_target);

#if HWY_ARCH_X86

// Highway's targets from these up: a better one has a lower bit, and AVX-512 has several.
constexpr std::int64_t kFromAvx2 = 2 * HWY_AVX2 - 1, kFromAvx512 = 2 * HWY_AVX3 - 1;

struct Level {
  const char* name;
  std::int64_t above;  // Highway's targets that it rules out
};

const Level* most_allowed() {
  static const Level levels[] = {
      {"sse4", kFromAvx2},
      {"avx2", kFromAvx512},
      {"avx512", 0},
      {"avx512_bf16", 0},
  };
  const char* wanted = std::getenv("SCONE_MAX_ISA");
  if (wanted == nullptr) return nullptr;
  for (const Level& level : levels)
    if (level.name == std::string_view(wanted)) return &level;
  throw InputError(std::string("SCONE_MAX_ISA is '") + wanted +
                   "'; expected sse4, avx2, avx512, avx512_bf16, or unset for all that the "
                   "processor has");
}

void limit_instruction_sets() {
  const Level* most = most_allowed();
  if (most == nullptr) return;
  if ((most->above & HWY_STATIC_TARGET) != 0)
    throw InputError(
        std::string("SCONE_MAX_ISA is '") + most->name +
        "', but all of this program is compiled for a better processor (SCONE_NATIVE)");
  hwy::DisableTargets(most->above);
}

bool multiplies_bf16() {
  const Level* most = most_allowed();
  return (HWY_DYNAMIC_DISPATCH(own_target)() & kFromAvx512) != 0 &&
         __builtin_cpu_supports("avx512bf16") != 0 &&
         (most == nullptr || most->name == std::string_view("avx512_bf16"));
}

#else

/// That which all is compiled for: neon.
std::string only_instruction_set() {
  std::string name = hwy::TargetName(HWY_STATIC_TARGET);
  for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return name;
}

void limit_instruction_sets() {
  const char* wanted = std::getenv("SCONE_MAX_ISA");
  if (wanted == nullptr || wanted == only_instruction_set()) return;
  throw InputError(std::string("SCONE_MAX_ISA is '") + wanted + "'; expected " +
                   only_instruction_set() + ", all that this program is built for, or unset");
}

bool multiplies_bf16() { return false; }

#endif

Backend& chosen_backend() {
  limit_instruction_sets();
  return HWY_DYNAMIC_DISPATCH(own_backend)();
}

}  // namespace

Backend& cpu_backend() {
  static Backend& backend = chosen_backend();
  return backend;
}

bool has_bf16_products() {
  static const bool has = multiplies_bf16();
  return has;
}

std::string cpu_instruction_set() {
  cpu_backend();
#if HWY_ARCH_X86
  const std::int64_t used = HWY_DYNAMIC_DISPATCH(own_target)();
  if ((used & kFromAvx512) == 0) return (used & kFromAvx2) == 0 ? "sse4" : "avx2";
  return has_bf16_products() ? "avx512_bf16" : "avx512";
#else
  return only_instruction_set();
#endif
}

}  // namespace scone

#endif  // HWY_ONCE

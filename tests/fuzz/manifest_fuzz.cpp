// Input: the JSON of a manifest, as it is and with the checksum that it ought to end with.
#include "checkpoint/checkpoint_manifest.h"
#include "fuzz_input.h"
#include "parallel/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (const std::string& given : {text, scone::seal_manifest(text)}) {
    try {
      const auto stored = scone::parse_manifest("manifest.json", given);
      const auto again = scone::parse_manifest("manifest.json", scone::manifest_text(stored));
      if (again.tensors.size() != stored.tensors.size()) __builtin_trap();
    } catch (const scone::InputError&) {
    }
  }
  return 0;
}

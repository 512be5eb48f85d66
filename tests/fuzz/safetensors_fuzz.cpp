// Input: a safetensors file.
#include "checkpoint/safetensors.h"
#include "fuzz_input.h"
#include "parallel/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const scone::MemoryFile memory({reinterpret_cast<const char*>(data), size});
  try {
    const scone::SafetensorsFile file(memory.path());
    for (const scone::SafetensorsEntry& entry : file.entries()) {
      try {
        file.read(entry.name, scone::Tensor::zeros(entry.shape));
      } catch (const scone::InputError&) {  // of another type than floats
      }
    }
  } catch (const scone::InputError&) {
  }
  return 0;
}

// Input: a tokenizer.json.
#include "data/byte_bpe_tokenizer.h"
#include "fuzz_input.h"
#include "parallel/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const scone::ByteBpeTokenizer tokenizer(
        "tokenizer.json", std::string_view(reinterpret_cast<const char*>(data), size));
    const std::string text = "The model's 12 f-grams\n\n \xc3\xa9 \xff end";
    std::vector<std::int32_t> ids;
    tokenizer.encode(text, ids);
    std::string back;
    for (const std::int32_t id : ids) {
      if (id < 0 || id >= tokenizer.vocabulary_size()) __builtin_trap();
      back += tokenizer.token_bytes(id);
    }
    for (std::int32_t id = 0; id < tokenizer.vocabulary_size() && id < 5000; ++id) {
      tokenizer.token_bytes(id);
    }
    if (tokenizer.end_of_document() >= tokenizer.vocabulary_size()) __builtin_trap();
  } catch (const scone::InputError&) {
  }
  return 0;
}

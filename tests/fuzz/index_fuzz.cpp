// Input: an index of f-grams, its first page without the padding, a zero byte, and what follows.
#include <vector>

#include "checkpoint/table/index_layout.h"
#include "checkpoint/table/table_index.h"
#include "fuzz_input.h"
#include "parallel/error.h"

namespace {

void use(const scone::TableIndex& index) {
  std::vector<std::int32_t> tokens;
  std::uint32_t state = 1;
  for (int i = 0; i < 600; ++i) {
    state = state * 1664525U + 1013904223U;
    tokens.push_back(static_cast<std::int32_t>(state >> 16U) %
                     static_cast<std::int32_t>(index.header().token_vocabulary_size + 1));
  }
  std::vector<std::int64_t> ids(tokens.size());
  std::vector<std::uint8_t> lengths(tokens.size());
  index.match(tokens, ids, lengths);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < -1 || ids[i] >= index.header().rows || (ids[i] < 0) != (lengths[i] == 0))
      __builtin_trap();
    if (ids[i] < 0) continue;
    const std::span ngram = std::span(tokens).subspan(i + 1 - lengths[i], lengths[i]);
    if (index.find(ngram) != ids[i]) __builtin_trap();
  }
  // Every key that it has is found.
  const std::vector<scone::TableKey> keys = index.keys();
  for (std::size_t id = 0; id < keys.size(); ++id) {
    std::vector<std::int32_t> ngram;
    std::int64_t at = static_cast<std::int64_t>(id);
    while (at >= 0 && keys[static_cast<std::size_t>(at)].used) {
      ngram.insert(ngram.begin(), keys[static_cast<std::size_t>(at)].last_token);
      at = keys[static_cast<std::size_t>(at)].prefix;
    }
    if (ngram.empty() || at >= 0) continue;  // no key, or none of its prefix
    ngram.insert(ngram.begin(), static_cast<std::int32_t>(-1 - at));
    if (index.find(ngram) != static_cast<std::int64_t>(id)) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = std::min(input.find('\0'), input.size());
  std::string file(input.substr(0, zero));
  if (zero < input.size()) {
    file.resize(scone::kIndexPageBytes, ' ');
    file += input.substr(zero + 1);
  }
  const scone::MemoryFile memory(file);
  try {
    use(scone::TableIndex(memory.path()));
  } catch (const scone::InputError&) {
  }
  return 0;
}

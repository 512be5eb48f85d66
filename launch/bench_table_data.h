#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <stdexcept>
#include <vector>

namespace scone {

// What `scone bench table` and its peers share: keys and rows of the same tables.

/// N-grams one behind the other: of all f-grams in the order of their ids, or of look-ups.
struct NgramList {
  std::vector<std::int32_t> tokens;
  std::vector<std::int64_t> offsets = {0};  // [n + 1]

  std::size_t size() const { return offsets.size() - 1; }
  std::span<const std::int32_t> operator[](std::size_t i) const {
    return std::span(tokens).subspan(static_cast<std::size_t>(offsets[i]),
                                     static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
  }
  void add(std::span<const std::int32_t> ngram) {
    tokens.insert(tokens.end(), ngram.begin(), ngram.end());
    offsets.push_back(static_cast<std::int64_t>(tokens.size()));
  }
};

inline void write_ngrams(const std::filesystem::path& path, const NgramList& list) {
  std::ofstream file(path, std::ios::binary);
  const auto put = [&](const auto& values) {
    const std::uint64_t count = values.size();
    file.write(reinterpret_cast<const char*>(&count), sizeof(count));
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(std::as_bytes(std::span(values)).size()));
  };
  put(list.tokens);
  put(list.offsets);
  if (!file.flush()) throw std::runtime_error(path.string() + ": cannot be written");
}

inline NgramList read_ngrams(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  NgramList list;
  const auto get = [&](auto& values) {
    std::uint64_t count = 0;
    file.read(reinterpret_cast<char*>(&count), sizeof(count));
    values.resize(count);
    file.read(reinterpret_cast<char*>(values.data()),
              static_cast<std::streamsize>(std::as_bytes(std::span(values)).size()));
  };
  get(list.tokens);
  get(list.offsets);
  if (!file) throw std::runtime_error(path.string() + ": cannot be read");
  return list;
}

/// The row of an f-gram: its id, then noise, which no disk compresses. bytes: a multiple of 8.
inline void fill_row(std::int64_t id, std::span<std::byte> row) {
  auto state = static_cast<std::uint64_t>(id) * 0x9E3779B97F4A7C15U;
  std::memcpy(row.data(), &id, sizeof(id));
  for (std::size_t at = 8; at < row.size(); at += 8) {
    state ^= state << 13U;
    state ^= state >> 7U;
    state ^= state << 17U;
    state += 0x9E3779B97F4A7C15U;
    std::memcpy(row.data() + at, &state, 8);
  }
}

/// Whether the row that came is of this f-gram.
inline bool is_row_of(std::int64_t id, const std::byte* row) {
  return std::memcmp(row, &id, sizeof(id)) == 0;
}

}  // namespace scone

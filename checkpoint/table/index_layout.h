#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

#include "checkpoint/table/table_index.h"

namespace scone {

/// Where the parts of an index file lie; all of it follows from the header and two counts.
struct IndexLayout {
  TableIndexHeader header;
  std::int64_t head_ids = 0;      // the first ids, whose children have explicit starts
  std::int64_t head_entries = 0;  // children of tokens and of the first ids

  unsigned token_bits() const;  // of a scattered token
  unsigned id_bits() const;
  unsigned entry_bits() const { return token_bits() + id_bits(); }
  std::int64_t entries() const { return header.rows - header.unused; }
  std::int64_t explicit_prefixes() const { return header.token_vocabulary_size + head_ids; }
  std::int64_t tail_ids() const { return header.rows - head_ids; }
  std::int64_t blocks() const { return (tail_ids() + kIndexBlock - 1) / kIndexBlock; }
  std::int64_t degree_bits() const { return tail_ids() + entries() - head_entries; }

  struct Section {
    std::int64_t offset, bytes;
  };
  Section starts() const;     // u32 [explicit_prefixes() + 1]
  Section directory() const;  // u32 [blocks()]
  Section packed() const;     // entries, and 8 bytes of zeros
  Section degrees() const;    // u64 words of bits
  std::int64_t file_bytes() const;

  static constexpr std::int64_t kIndexBlock = 64;  // ids for each number of the directory
};

inline constexpr std::int64_t kIndexPageBytes = 4096;
inline constexpr std::int64_t kMostIndexRows = 2147483647;  // 2^31 - 1
inline constexpr std::int64_t kMostTokenVocabulary = std::int64_t{1}
                                                     << 22U;  // as f-gram files have
inline constexpr int kLongestIndexed = 255;

/// Throws InputError for numbers out of range; source: for errors.
void check_index_header(const TableIndexHeader& header, const std::string& source);
/// The first page of an index file.
std::string index_page(const IndexLayout& layout);
/// The layout that the first page describes; source: for errors. Throws InputError.
IndexLayout parse_index_page(const std::string& page, const std::string& source);

/// TableIndex::write with so many ids whose children have explicit starts.
void write_index(const std::filesystem::path& path, const TableIndexHeader& header,
                 const std::function<TableKey(std::int64_t id)>& key_of, std::int64_t head_ids);

/// A fixed bijection on numbers of `bits` bits that makes token ids uniform: x ^= x >> h, x *=
/// 0x9E3779B1, x ^= x >> h, x *= 0x85EBCA6B, x ^= x >> h, of which the lowest `bits` bits are kept
/// each time, and h = (bits + 1) / 2.
inline std::uint32_t scatter_token(std::uint32_t token, unsigned bits) {
  const unsigned half = (bits + 1) / 2;
  const std::uint32_t mask = (1U << bits) - 1;
  token ^= token >> half;
  token = token * 0x9E3779B1U & mask;
  token ^= token >> half;
  token = token * 0x85EBCA6BU & mask;
  return token ^ token >> half;
}

}  // namespace scone

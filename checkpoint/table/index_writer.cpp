// Writes index files. Memory: a byte an f-gram, the starts and the directory, the degrees, and one
// batch of entries; entries go to the file as they are made.
#include <fcntl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/table/index_layout.h"
#include "checkpoint/table/raw_file.h"
#include "checkpoint/table/table_index.h"
#include "parallel/error.h"

namespace scone {
namespace {

using KeyOf = std::function<TableKey(std::int64_t)>;

// A batch of entries to sort: the memory is a small part of the index', the keys are read so often.
constexpr std::int64_t kLeastBatch = 1 << 16, kBatches = 16;
constexpr std::size_t kWriteBytes = std::size_t{1} << 20;

/// Bytes on their way to a file.
class BufferedWriter {
 public:
  explicit BufferedWriter(const RawFile& file) : file_(file) { pending_.reserve(kWriteBytes); }
  void add(const void* data, std::size_t bytes) {
    if (pending_.size() + bytes > kWriteBytes) flush();
    const auto* begin = static_cast<const std::byte*>(data);
    if (bytes > kWriteBytes) return file_.write({begin, bytes});
    pending_.insert(pending_.end(), begin, begin + bytes);
  }
  void zeros(std::int64_t bytes) {
    for (constexpr std::uint64_t zero = 0; bytes > 0; bytes -= 8)
      add(&zero, static_cast<std::size_t>(std::min<std::int64_t>(bytes, 8)));
  }
  void flush() {
    file_.write(pending_);
    pending_.clear();
  }

 private:
  const RawFile& file_;
  std::vector<std::byte> pending_;
};

/// Numbers of a fixed width in bits, the lowest bits first.
class BitPacker {
 public:
  BitPacker(BufferedWriter& out, unsigned width) : out_(out), width_(width) {}
  void add(std::uint64_t value) {
    held_ |= static_cast<unsigned __int128>(value) << bits_;
    for (bits_ += width_; bits_ >= 64; bits_ -= 64, held_ >>= 64) put(8);
  }
  void finish() { put((bits_ + 7) / 8); }

 private:
  void put(std::size_t bytes) {
    const auto low = static_cast<std::uint64_t>(held_);
    out_.add(&low, bytes);
  }
  BufferedWriter& out_;
  unsigned width_, bits_ = 0;
  unsigned __int128 held_ = 0;
};

/// Reads the keys' prefixes, and checks each key but for repeats.
class KeyReader {
 public:
  KeyReader(const TableIndexHeader& header, const KeyOf& key_of, std::string source)
      : header_(header),
        key_of_(key_of),
        source_(std::move(source)),
        length_(static_cast<std::size_t>(header.rows)) {}

  /// Number of the key's prefix, tokens first; -1: the id has no key.
  std::int64_t check(std::int64_t id) {
    const TableKey key = key_of_(id);
    if (!key.used) return -1;
    const std::int64_t vocabulary = header_.token_vocabulary_size;
    if (key.prefix >= id || key.prefix < -vocabulary || key.last_token < 0 ||
        key.last_token >= vocabulary) {
      fail(id, "has prefix " + std::to_string(key.prefix) + " and last token " +
                   std::to_string(key.last_token) + ", expected " + std::to_string(-vocabulary) +
                   ".." + std::to_string(id - 1) + " and less than " + std::to_string(vocabulary));
    }
    const int before = key.prefix < 0 ? 1 : length_[static_cast<std::size_t>(key.prefix)];
    if (before == 0)
      fail(id, "has the prefix " + std::to_string(key.prefix) + ", which has no key");
    if (before >= header_.max_length)
      fail(id, "is longer than the longest, " + std::to_string(header_.max_length));
    length_[static_cast<std::size_t>(id)] = static_cast<std::uint8_t>(before + 1);
    return number_of(key.prefix);
  }
  TableKey key(std::int64_t id) const { return key_of_(id); }
  bool used(std::int64_t id) const { return length_[static_cast<std::size_t>(id)] != 0; }
  /// Tokens are numbered first, then ids.
  std::int64_t number_of(std::int64_t prefix) const {
    return prefix < 0 ? -1 - prefix : header_.token_vocabulary_size + prefix;
  }
  [[noreturn]] void fail(std::int64_t id, const std::string& what) const {
    throw InputError(source_ + ": f-gram " + std::to_string(id) + " " + what +
                     "; the f-grams are damaged, make them again");
  }

 private:
  const TableIndexHeader& header_;
  const KeyOf& key_of_;
  std::string source_;
  std::vector<std::uint8_t> length_;  // 0: of no key
};

struct Child {
  std::uint32_t prefix;  // its number
  std::uint32_t token;   // scattered
  std::uint32_t id;
  bool operator<(const Child& other) const {
    return prefix != other.prefix ? prefix < other.prefix : token < other.token;
  }
};

class IndexWriter {
 public:
  IndexWriter(const TableIndexHeader& header, const KeyOf& key_of, std::int64_t head_ids,
              const std::string& source)
      : keys_(header, key_of, source) {
    layout_.header = header;
    layout_.head_ids = std::min(header.rows, head_ids);
    count(source);
  }

  void write(const RawFile& file) {
    BufferedWriter out(file);
    const std::string page = index_page(layout_);
    out.add(page.data(), page.size());
    add_section(out, layout_.starts(), starts_.data(), layout_.directory().offset);
    add_section(out, layout_.directory(), directory_.data(), layout_.packed().offset);
    degrees_.assign(static_cast<std::size_t>(layout_.degrees().bytes) / 8, 0);
    write_entries(out);
    const IndexLayout::Section packed = layout_.packed();
    out.zeros(layout_.degrees().offset - (packed.offset + packed.bytes - 8));
    out.add(degrees_.data(), degrees_.size() * 8);
    out.flush();
  }

 private:
  static void add_section(BufferedWriter& out, IndexLayout::Section section, const void* data,
                          std::int64_t next) {
    out.add(data, static_cast<std::size_t>(section.bytes));
    out.zeros(next - section.offset - section.bytes);
  }

  /// Sums of the children, by prefix for those with explicit starts, else by block.
  void count(const std::string& source) {
    const std::int64_t explicit_prefixes = layout_.explicit_prefixes();
    starts_.assign(static_cast<std::size_t>(explicit_prefixes) + 1, 0);
    directory_.assign(static_cast<std::size_t>(layout_.blocks()), 0);
    std::int64_t unused = 0;
    for (std::int64_t id = 0; id < layout_.header.rows; ++id) {
      const std::int64_t prefix = keys_.check(id);
      if (prefix < 0) {
        ++unused;
      } else if (prefix < explicit_prefixes) {
        ++starts_[static_cast<std::size_t>(prefix) + 1];
      } else {
        ++directory_[static_cast<std::size_t>((prefix - explicit_prefixes) /
                                              IndexLayout::kIndexBlock)];
      }
    }
    if (unused != layout_.header.unused) {
      throw InputError(source + ": expected " + std::to_string(layout_.header.unused) +
                       " ids without a key, found " + std::to_string(unused));
    }
    for (std::size_t i = 1; i < starts_.size(); ++i) starts_[i] += starts_[i - 1];
    layout_.head_entries = starts_.back();
    std::uint32_t bits = 0;
    for (std::uint32_t& block : directory_)
      bits += std::exchange(block, bits) + static_cast<std::uint32_t>(IndexLayout::kIndexBlock);
  }

  /// First entry of the children of prefixes from `bound` on. bound: a boundary of batches.
  std::int64_t entries_before(std::int64_t bound) const {
    const std::int64_t tail = bound - layout_.explicit_prefixes();
    if (tail <= 0) return starts_[static_cast<std::size_t>(bound)];
    const std::int64_t block = tail / IndexLayout::kIndexBlock;
    if (block >= layout_.blocks()) return layout_.entries();
    return layout_.head_entries + directory_[static_cast<std::size_t>(block)] -
           block * IndexLayout::kIndexBlock;
  }
  std::int64_t next_bound(std::int64_t bound) const {
    const std::int64_t explicit_prefixes = layout_.explicit_prefixes();
    return bound < explicit_prefixes ? bound + 1 : bound + IndexLayout::kIndexBlock;
  }

  void write_entries(BufferedWriter& out) {
    BitPacker packer(out, layout_.entry_bits());
    const std::int64_t end = layout_.header.token_vocabulary_size + layout_.header.rows;
    std::int64_t tail_bit = 0;
    const std::int64_t most = std::max(kLeastBatch, layout_.entries() / kBatches);
    std::vector<Child> batch;
    for (std::int64_t begin = 0, bound = 0; begin < end; begin = bound) {
      bound = next_bound(begin);
      while (bound < end && entries_before(next_bound(bound)) - entries_before(begin) <= most)
        bound = next_bound(bound);
      collect(begin, bound, batch);
      std::size_t at = 0;
      for (std::int64_t prefix = begin; prefix < std::min(bound, end); ++prefix) {
        for (; at < batch.size() && batch[at].prefix == prefix; ++at) {
          packer.add(std::uint64_t{batch[at].token} << layout_.id_bits() | batch[at].id);
          if (prefix >= layout_.explicit_prefixes()) {
            degrees_[static_cast<std::size_t>(tail_bit / 64)] |= std::uint64_t{1}
                                                                 << (tail_bit % 64);
            ++tail_bit;
          }
        }
        if (prefix >= layout_.explicit_prefixes()) ++tail_bit;
      }
    }
    packer.finish();
  }

  /// Children of the prefixes begin..end - 1 in their order.
  void collect(std::int64_t begin, std::int64_t end, std::vector<Child>& batch) const {
    batch.clear();
    if (entries_before(begin) == entries_before(end)) return;
    // A child's id is above its prefix'.
    const std::int64_t first =
        std::max<std::int64_t>(0, begin - layout_.header.token_vocabulary_size);
    for (std::int64_t id = first; id < layout_.header.rows; ++id) {
      if (!keys_.used(id)) continue;
      const TableKey key = keys_.key(id);
      const std::int64_t prefix = keys_.number_of(key.prefix);
      if (prefix < begin || prefix >= end) continue;
      batch.push_back(
          {static_cast<std::uint32_t>(prefix),
           scatter_token(static_cast<std::uint32_t>(key.last_token), layout_.token_bits()),
           static_cast<std::uint32_t>(id)});
    }
    std::sort(batch.begin(), batch.end());
    for (std::size_t i = 1; i < batch.size(); ++i) {
      if (!(batch[i - 1] < batch[i])) {
        keys_.fail(
            std::max(batch[i].id, batch[i - 1].id),
            "is the same as f-gram " + std::to_string(std::min(batch[i].id, batch[i - 1].id)));
      }
    }
  }

  IndexLayout layout_;
  KeyReader keys_;
  std::vector<std::uint32_t> starts_, directory_;
  std::vector<std::uint64_t> degrees_;
};

}  // namespace

void write_index(const std::filesystem::path& path, const TableIndexHeader& header,
                 const KeyOf& key_of, std::int64_t head_ids) {
  check_index_header(header, path.string());
  IndexWriter writer(header, key_of, head_ids, path.string());
  const RawFile file(path, O_WRONLY | O_CREAT | O_TRUNC);
  writer.write(file);
  file.sync();
}

void TableIndex::write(const std::filesystem::path& path, const TableIndexHeader& header,
                       const KeyOf& key_of) {
  // The most frequent f-grams have the most children, and are looked up most.
  write_index(path, header, key_of, std::max<std::int64_t>(4096, header.rows / 64));
}

}  // namespace scone

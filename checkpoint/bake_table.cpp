#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "checkpoint/bake.h"
#include "data/fgram_trie.h"
#include "model/tensor.h"

namespace scone {
namespace {

/// A file descriptor for pwrite.
class WriteFile {
 public:
  explicit WriteFile(const std::filesystem::path& path)
      : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) fail("be opened");
  }
  ~WriteFile() { ::close(descriptor_); }
  WriteFile(const WriteFile&) = delete;
  WriteFile& operator=(const WriteFile&) = delete;

  void write_at(std::int64_t offset, std::span<const std::byte> bytes) const {
    while (!bytes.empty()) {
      const ssize_t written = ::pwrite(descriptor_, bytes.data(), bytes.size(), offset);
      if (written < 0 && errno == EINTR) continue;
      if (written <= 0) fail("be written");
      bytes = bytes.subspan(static_cast<std::size_t>(written));
      offset += written;
    }
  }
  void sync() const {
    if (::fsync(descriptor_) != 0) fail("be synced to disk");
  }

 private:
  [[noreturn]] void fail(const char* action) const {
    throw std::runtime_error(
        fmt::format("{}: cannot {}: {}", path_.string(), action, std::strerror(errno)));
  }
  std::filesystem::path path_;
  int descriptor_;
};

/// Encodes the rows of `trie`'s f-grams and writes each at its id's place, runs of consecutive ids
/// in one call.
void write_rows(const WriteFile& file, const TableLayout& layout, std::span<const std::int64_t> ids,
                const FgramTrie& trie, const Tensor& rows) {
  const auto width = static_cast<std::size_t>(layout.width);
  const auto record = static_cast<std::size_t>(layout.bytes_of_record());
  constexpr std::size_t kMostRun = 256;
  std::vector<std::byte> buffer;
  for (std::size_t begin = 0; begin < ids.size();) {
    std::size_t end = begin + 1;
    while (end < ids.size() && end - begin < kMostRun && ids[end] == ids[end - 1] + 1) ++end;
    buffer.assign((end - begin) * record, std::byte{0});
    for (std::size_t i = begin; i < end; ++i) {
      const std::span<const float> row(rows.data<float>() + trie.node_of_fgram[i] * layout.width,
                                       width);
      if (!std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); })) {
        throw std::runtime_error(fmt::format(
            "the row of f-gram {} is not finite: the checkpoint's f-gram model has diverged; bake "
            "an earlier checkpoint",
            ids[i]));
      }
      encode_row(layout.type, row, buffer.data() + (i - begin) * record);
    }
    file.write_at(kTableDataOffset + ids[begin] * layout.bytes_of_record(), buffer);
    begin = end;
  }
}

}  // namespace

BakeBlocks::BakeBlocks(const FgramVocabulary& vocabulary, std::int64_t block_nodes) {
  const std::int64_t size = vocabulary.size();
  // Leading bigram of each id (a prefix has a lower id), and f-grams of each leading bigram.
  std::vector<std::int64_t> bigram(static_cast<std::size_t>(size), -1);
  std::vector<std::int64_t> bigrams;
  std::vector<std::int64_t> members(static_cast<std::size_t>(size), 0);
  for (std::int64_t id = 0; id < size; ++id) {
    if (vocabulary.length(id) > vocabulary.max_length()) continue;
    const std::int64_t prefix = vocabulary.prefix(id);
    const std::int64_t leading = prefix < 0 ? id : bigram[static_cast<std::size_t>(prefix)];
    if (prefix < 0) bigrams.push_back(id);
    bigram[static_cast<std::size_t>(id)] = leading;
    ++members[static_cast<std::size_t>(leading)];
  }
  std::sort(bigrams.begin(), bigrams.end(), [&](std::int64_t a, std::int64_t b) {
    return std::pair{vocabulary.first_token(a), vocabulary.last_token(a)} <
           std::pair{vocabulary.first_token(b), vocabulary.last_token(b)};
  });
  // members[leading bigram] becomes its block.
  std::vector<std::int64_t> block_sizes;
  for (const std::int64_t leading : bigrams) {
    std::int64_t& count = members[static_cast<std::size_t>(leading)];
    if (block_sizes.empty() || block_sizes.back() + count > block_nodes) block_sizes.push_back(0);
    block_sizes.back() += count;
    count = static_cast<std::int64_t>(block_sizes.size()) - 1;
  }
  begin_.assign(block_sizes.size() + 1, 0);
  std::partial_sum(block_sizes.begin(), block_sizes.end(), begin_.begin() + 1);
  ids_.resize(static_cast<std::size_t>(begin_.back()));
  std::vector<std::int64_t> next(begin_.begin(), begin_.end() - 1);
  for (std::int64_t id = 0; id < size; ++id) {
    const std::int64_t leading = bigram[static_cast<std::size_t>(id)];
    if (leading < 0) continue;
    const std::int64_t block = members[static_cast<std::size_t>(leading)];
    ids_[static_cast<std::size_t>(next[static_cast<std::size_t>(block)]++)] = id;
  }
}

std::span<const std::int64_t> BakeBlocks::ids(std::int64_t block) const {
  const auto begin = static_cast<std::size_t>(begin_.at(static_cast<std::size_t>(block)));
  const auto end = static_cast<std::size_t>(begin_.at(static_cast<std::size_t>(block) + 1));
  return std::span(ids_).subspan(begin, end - begin);
}

void bake_table(const FgramVocabulary& vocabulary, FgramModel& model, const TableLayout& layout,
                const std::filesystem::path& path, std::int64_t block_nodes, Communicator& ranks,
                const BakeProgressReport& report) {
  const auto started = std::chrono::steady_clock::now();
  const BakeBlocks blocks(vocabulary, block_nodes);
  const WriteFile file(path);
  BakeProgress progress;
  for (std::int64_t block = ranks.rank(); block < blocks.blocks(); block += ranks.size()) {
    progress.rows_total += static_cast<std::int64_t>(blocks.ids(block).size());
  }
  Tensor buffer;
  for (std::int64_t block = ranks.rank(); block < blocks.blocks(); block += ranks.size()) {
    const auto ids = blocks.ids(block);
    const FgramTrie trie = build_fgram_trie(vocabulary, ids);
    const Shape shape = {trie.size(), layout.width};
    if (buffer.empty() || buffer.dim(0) < trie.size()) buffer = Tensor::zeros(shape);
    const Tensor rows = buffer.view(shape);
    model.forward({trie.token, trie.parent, trie.depth}, rows);
    write_rows(file, layout, ids, trie, rows);
    progress.rows_done += static_cast<std::int64_t>(ids.size());
    progress.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    if (report) report(progress);
  }
  file.sync();
  ranks.barrier();
}

}  // namespace scone

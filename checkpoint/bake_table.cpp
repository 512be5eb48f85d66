#include "checkpoint/bake_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <future>
#include <string>
#include <vector>

#include "checkpoint/bake_blocks.h"
#include "checkpoint/bake_journal.h"
#include "checkpoint/file_checksum.h"
#include "checkpoint/table_files.h"
#include "data/fgram_trie.h"
#include "model/ops/ops.h"
#include "model/tensor.h"
#include "parallel/error.h"

namespace scone {
namespace {

std::string checksum_of(std::span<const std::byte> records) {
  StreamingChecksum checksum;
  checksum.add(records);
  return checksum.hex();
}

/// 1 for each block that is finished and whole; the ranks share the reading.
std::vector<std::int64_t> verified_blocks(const std::filesystem::path& folder,
                                          const BakeBlocks& blocks, const TableFiles& files,
                                          std::int64_t record, Communicator& ranks) {
  std::vector<std::int64_t> verified(static_cast<std::size_t>(blocks.blocks()), 0);
  std::vector<std::byte> records;
  for (const auto& [block, checksum] : BakeJournal::finished(folder)) {
    if (block < 0 || block >= blocks.blocks() || block % ranks.size() != ranks.rank()) continue;
    const auto ids = blocks.ids(block);
    records.resize(ids.size() * static_cast<std::size_t>(record));
    files.read(ids, records);
    verified[static_cast<std::size_t>(block)] = checksum_of(records) == checksum;
  }
  ranks.all_reduce(verified, ReduceOp::max);
  return verified;
}

/// The f-grams of a block through the model, as records.
class BlockEvaluation {
 public:
  BlockEvaluation(const FgramVocabulary& vocabulary, FgramModel& model, Backend& backend,
                  const TableLayout& layout)
      : vocabulary_(vocabulary), model_(model), backend_(backend), layout_(layout) {}

  void run(std::span<const std::int64_t> ids, std::vector<std::byte>& records) {
    const FgramTrie trie = build_fgram_trie(vocabulary_, ids);
    const Shape shape = {trie.size(), layout_.width};
    if (rows_.empty() || rows_.dim(0) < trie.size())
      rows_ = Tensor::zeros(shape, DType::fp32, backend_.device());
    const Tensor rows = rows_.view(shape);
    model_.forward({trie.token, trie.parent, trie.depth}, rows);
    std::span<const float> values;
    if (backend_.device() == Device::cpu) {
      values = rows.span<float>();
    } else {
      host_.resize(static_cast<std::size_t>(rows.elements()));
      backend_.download(rows, host_);
      values = host_;
    }
    encode(ids, trie, values, records);
  }

 private:
  void encode(std::span<const std::int64_t> ids, const FgramTrie& trie,
              std::span<const float> values, std::vector<std::byte>& records) const {
    const auto width = static_cast<std::size_t>(layout_.width);
    const auto record = static_cast<std::size_t>(layout_.bytes_of_record());
    records.assign(ids.size() * record, std::byte{0});
    std::atomic<std::int64_t> not_finite{-1};
#pragma omp parallel for schedule(static)
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto row =
          values.subspan(static_cast<std::size_t>(trie.node_of_fgram[i]) * width, width);
      if (!std::all_of(row.begin(), row.end(), [](float x) { return std::isfinite(x); }))
        not_finite = ids[i];
      encode_row(layout_.type, row, records.data() + i * record);
    }
    if (not_finite >= 0)
      throw InputError(fmt::format(
          "the row of f-gram {} is not finite: the checkpoint's f-gram model has diverged; bake "
          "an earlier checkpoint",
          not_finite.load()));
  }

  const FgramVocabulary& vocabulary_;
  FgramModel& model_;
  Backend& backend_;
  const TableLayout& layout_;
  Tensor rows_;              // [nodes, width]
  std::vector<float> host_;  // the same, where the device is not the host
};

}  // namespace

std::int64_t bake_table(const FgramVocabulary& vocabulary, FgramModel& model, Backend& backend,
                        const TableLayout& layout, const std::filesystem::path& folder,
                        std::int64_t block_nodes, Communicator& ranks,
                        const BakeProgressReport& report) {
  const BakeBlocks blocks(vocabulary, block_nodes);
  const TableFiles files(folder, layout);
  const auto verified = verified_blocks(folder, blocks, files, layout.bytes_of_record(), ranks);

  BakeProgress progress;
  std::vector<std::int64_t> own;  // blocks of this rank
  std::int64_t left = 0;
  for (std::int64_t block = 0; block < blocks.blocks(); ++block) {
    const auto size = static_cast<std::int64_t>(blocks.ids(block).size());
    if (verified[static_cast<std::size_t>(block)] != 0) {
      progress.rows_kept += size;
    } else if (left++ % ranks.size() == ranks.rank()) {
      own.push_back(block);
      progress.rows_total += size;
    }
  }

  const auto started = std::chrono::steady_clock::now();
  BakeJournal journal(folder, ranks.rank());
  BlockEvaluation evaluation(vocabulary, model, backend, layout);
  // While a block is computed, the one before is written.
  std::vector<std::byte> records, written;
  std::future<void> writing;
  for (const std::int64_t block : own) {
    evaluation.run(blocks.ids(block), records);
    if (writing.valid()) writing.get();
    std::swap(records, written);
    writing = std::async(std::launch::async, [&, block] {
      files.write(blocks.ids(block), written);
      journal.add(block, checksum_of(written));
    });
    progress.rows_done += static_cast<std::int64_t>(blocks.ids(block).size());
    progress.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
    if (report) report(progress);
  }
  if (writing.valid()) writing.get();
  files.sync();
  ranks.barrier();
  return progress.rows_kept;
}

}  // namespace scone

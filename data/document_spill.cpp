#include "data/document_spill.h"

#include <fmt/format.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "parallel/agreed_errors.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

/// A document in a rank's index.
struct Spilled {
  std::int64_t tokens, text_bytes;
  std::uint64_t text_hash;
};

/// A document in the plan of a shard.
struct Planned {
  std::int64_t rank, first_token, tokens, text_bytes;
  std::uint64_t text_hash;
};

template <class Record>
bool read_record(std::ifstream& stream, Record& record) {
  return static_cast<bool>(stream.read(reinterpret_cast<char*>(&record), sizeof record));
}
template <class Record>
void write_record(std::ofstream& stream, const Record& record) {
  stream.write(reinterpret_cast<const char*>(&record), sizeof record);
}

std::ifstream open_for_reading(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream)
    throw InputError(
        fmt::format("{}: cannot be read: {}; --output must lie where all ranks see the same files",
                    path.string(), std::strerror(errno)));
  return stream;
}

}  // namespace

fs::path DocumentSpill::tokens_path(int rank) const {
  return folder_ / fmt::format("rank-{:05}.tokens", rank);
}
fs::path DocumentSpill::index_path(int rank) const {
  return folder_ / fmt::format("rank-{:05}.index", rank);
}
fs::path DocumentSpill::plan_path(bool validation, std::int64_t shard) const {
  return folder_ / fmt::format("{}-{:05}.plan", validation ? "validation" : "train", shard);
}

void DocumentSpill::disk_full(const fs::path& path) const {
  std::error_code error;
  const auto space = fs::space(folder_, error);
  throw InputError(fmt::format(
      "{}: cannot be written (space left: {}); several ranks need twice the space of the shards: "
      "free some, give another --output, or use one rank",
      path.string(),
      error ? "unknown" : fmt::format("{:.1f} MB", static_cast<double>(space.available) / 1e6)));
}

DocumentSpill::DocumentSpill(const fs::path& folder, const ShardTokenizer& tokenizer, int rank)
    : folder_(folder),
      tokenizer_(tokenizer),
      rank_(rank),
      is_short_(tokenizer.vocabulary_size <= 65536),
      tokens_(tokens_path(rank), std::ios::binary | std::ios::trunc),
      index_(index_path(rank), std::ios::binary | std::ios::trunc) {
  if (!tokens_) disk_full(tokens_path(rank));
  if (!index_) disk_full(index_path(rank));
}

void DocumentSpill::add(const EncodedDocument& document) {
  const auto count = static_cast<std::int64_t>(document.tokens.size());
  if (is_short_) {
    narrow_.assign(document.tokens.begin(), document.tokens.end());
    tokens_.write(reinterpret_cast<const char*>(narrow_.data()),
                  static_cast<std::streamsize>(narrow_.size() * sizeof narrow_[0]));
  } else {
    tokens_.write(reinterpret_cast<const char*>(document.tokens.data()),
                  static_cast<std::streamsize>(document.tokens.size() * sizeof document.tokens[0]));
  }
  write_record(index_, Spilled{count, document.text_bytes, document.text_hash});
  if (!tokens_) disk_full(tokens_path(rank_));
  if (!index_) disk_full(index_path(rank_));
}

void DocumentSpill::close() {
  tokens_.close();
  index_.close();
  if (!tokens_) disk_full(tokens_path(rank_));
  if (!index_) disk_full(index_path(rank_));
}

std::vector<std::int64_t> DocumentSpill::plan_shards(int ranks, double validation_fraction,
                                                     std::int64_t shard_tokens) const {
  struct Side {
    std::int64_t shards = 0, documents = 0, tokens = 0;  // documents and tokens of the last shard
    std::ofstream plan;
  };
  std::array<Side, 2> sides;
  DocumentSplit<Planned> split(validation_fraction, [&](auto side_of, const Planned& document) {
    const bool validation = side_of == DocumentSplit<Planned>::Side::validation;
    Side& side = sides[validation ? 1 : 0];
    // As TokenShardWriter divides them.
    if (side.shards == 0 || (side.documents > 0 && side.tokens + document.tokens > shard_tokens)) {
      if (side.shards > 0) {
        side.plan.close();
        if (!side.plan) disk_full(plan_path(validation, side.shards - 1));
      }
      side.plan.open(plan_path(validation, side.shards++), std::ios::binary | std::ios::trunc);
      side.documents = side.tokens = 0;
    }
    ++side.documents;
    side.tokens += document.tokens;
    write_record(side.plan, document);
    if (!side.plan) disk_full(plan_path(validation, side.shards - 1));
  });
  for (int rank = 0; rank < ranks; ++rank) {
    std::ifstream index = open_for_reading(index_path(rank));
    std::int64_t first = 0;
    for (Spilled document{}; read_record(index, document);) {
      split.add({rank, first, document.tokens, document.text_bytes, document.text_hash});
      first += document.tokens;
    }
  }
  split.finish();
  for (std::size_t i = 0; i < sides.size(); ++i) {
    if (sides[i].shards == 0) continue;
    sides[i].plan.close();
    if (!sides[i].plan) disk_full(plan_path(i == 1, sides[i].shards - 1));
  }
  return {sides[0].shards, sides[1].shards};
}

void DocumentSpill::write_shard(bool validation, std::int64_t shard, const fs::path& folder,
                                ShardTotals& totals) const {
  TokenShardWriter writer(folder, tokenizer_, INT64_MAX, shard);
  std::ifstream plan = open_for_reading(plan_path(validation, shard));
  std::ifstream tokens;
  std::int64_t open_rank = -1;
  std::vector<std::int32_t> ids;
  std::vector<std::uint16_t> narrow;
  for (Planned document{}; read_record(plan, document);) {
    if (document.rank != open_rank) {
      tokens = open_for_reading(tokens_path(static_cast<int>(document.rank)));
      open_rank = document.rank;
    }
    const auto count = static_cast<std::size_t>(document.tokens);
    ids.resize(count);
    const std::int64_t place = document.first_token * (is_short_ ? 2 : 4);
    if (tokens.tellg() != place) tokens.seekg(place);  // a seek drops what was read ahead
    if (is_short_) {
      narrow.resize(count);
      tokens.read(reinterpret_cast<char*>(narrow.data()),
                  static_cast<std::streamsize>(count * sizeof narrow[0]));
      ids.assign(narrow.begin(), narrow.end());
    } else {
      tokens.read(reinterpret_cast<char*>(ids.data()),
                  static_cast<std::streamsize>(count * sizeof ids[0]));
    }
    if (!tokens)
      throw InputError(fmt::format("{}: cut short, or the disk cannot be read",
                                   tokens_path(static_cast<int>(document.rank)).string()));
    writer.add(ids, document.text_bytes);
  }
  writer.finish();
  totals.documents += writer.totals().documents;
  totals.tokens += writer.totals().tokens;
  totals.text_bytes += writer.totals().text_bytes;
  totals.shards += writer.totals().shards;
}

DocumentSpill::Sides DocumentSpill::write_shards(Communicator& world, double validation_fraction,
                                                 std::int64_t shard_tokens, const fs::path& train,
                                                 const fs::path& validation) {
  std::vector<std::int64_t> shards(2);
  run_agreed(world, [&] {
    if (world.rank() == 0) shards = plan_shards(world.size(), validation_fraction, shard_tokens);
  });
  world.broadcast(std::as_writable_bytes(std::span(shards)), 0);
  Sides sides;
  run_agreed(world, [&] {
    for (std::int64_t s = world.rank(); s < shards[0] + shards[1]; s += world.size()) {
      const bool is_train = s < shards[0];
      write_shard(!is_train, is_train ? s : s - shards[0], is_train ? train : validation,
                  is_train ? sides.train : sides.validation);
    }
  });
  for (ShardTotals* totals : {&sides.train, &sides.validation}) {
    std::array<std::int64_t, 4> sums = {totals->documents, totals->tokens, totals->text_bytes,
                                        totals->shards};
    world.all_reduce(std::span<std::int64_t>(sums), ReduceOp::sum);
    *totals = {sums[0], sums[1], sums[2], sums[3]};
  }
  std::error_code ignored;
  if (world.rank() == 0) fs::remove_all(folder_, ignored);
  world.barrier();
  return sides;
}

}  // namespace scone

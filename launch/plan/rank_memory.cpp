#include "launch/plan/rank_memory.h"

#include <algorithm>
#include <stdexcept>

#include "data/memory_budget.h"
#include "model/fgram_model.h"
#include "model/main_model.h"

namespace scone {
namespace {

constexpr std::int64_t kFloat = sizeof(float), kIndex = sizeof(std::int32_t),
                       kId = sizeof(std::int64_t);
// FgramIndex: a slot of 8 bytes an f-gram, in buckets that are not quite full.
constexpr std::int64_t kIndexBytes = 10;

std::int64_t signed_bytes(std::size_t bytes) { return static_cast<std::int64_t>(bytes); }

/// What reserve_rows and RowExchange take for `rows`.
std::int64_t reserved(std::int64_t rows) { return std::max<std::int64_t>(1, rows + rows / 8); }

struct StateBytes {
  std::int64_t parameters = 0, gradients = 0, moments = 0;
  std::int64_t values = 0;     // fp32, of the parameters
  std::int64_t written = 0;    // what a checkpoint has of this rank
  std::int64_t under_way = 0;  // of reductions begun and not done, at most
};

StateBytes state_bytes(const RunConfig& config, const std::vector<ParameterSpec>& specs,
                       const GridConfig& sharding, int tp, int dp, int rank) {
  const std::int64_t elements = parameter_offsets(specs, tp).back();
  const bool zero = sharding.zero > 0 && dp > 1;
  const std::int64_t sliced =
      sliced_elements(elements, config.parallel.bucket_elements, {rank / tp, dp});
  const std::int64_t working =
      config.compute.dtype == DType::fp32 ? 0 : signed_bytes(size_of(config.compute.dtype));
  // MPI receives into memory of its own; a reduce_scatter of ours the other ranks' slices.
  const bool overlaps =
      dp > 1 && config.parallel.overlap && config.parallel.communicator == Transport::mpi;
  const std::int64_t received = zero ? sliced * (dp - 1) : elements;
  return {.parameters = elements * (kFloat + working),
          .gradients = (elements + (zero ? sliced : 0)) * kFloat,
          .moments = 2 * (zero ? sliced : elements) * kFloat,
          .values = elements * kFloat,
          .written = 3 * sliced * kFloat,
          .under_way = overlaps ? received * kFloat : 0};
}

TensorParallelSize tensor_parallel(const GridConfig& sharding) {
  return {sharding.tp, sharding.tp > 1 && sharding.sequence_parallel};
}

/// Rows of f-grams and token embeddings, and their gradients, here, at their owner and on the way.
std::int64_t exchange_bytes(const RunConfig& config, const PlanGrids& grids, const RankLoad& load) {
  const std::int64_t row = config.model.main.width * kFloat;
  std::int64_t bytes = 2 * reserved(std::max<std::int64_t>(1, load.rows_asked)) * row +
                       reserved(load.trie_nodes) * row;
  const auto way = [&](std::int64_t asked, std::int64_t served) {
    return reserved(asked) * (row + kIndex) + reserved(served) * (row + kIndex);
  };
  if (grids.ranks > 1) bytes += way(load.rows_asked, load.rows_served);
  if (grids.main_tp > 1) {
    const bool is_fp32 = config.compute.dtype == DType::fp32;
    const std::int64_t own_tokens =
        (config.model.vocabulary_size + grids.main_tp - 1) / grids.main_tp;
    bytes += reserved(load.token_rows) *
                 (row + config.model.main.width * signed_bytes(size_of(config.compute.dtype))) +
             way(load.token_rows, load.token_rows_served);
    if (!is_fp32) bytes += (reserved(own_tokens) + reserved(load.token_rows)) * row;
  }
  return bytes;
}

/// Of one batch on one rank: tokens, targets, starts and rows of the positions, matches and their
/// sorted ids; the trie and who asks whom for what.
std::int64_t batch_bytes(std::int64_t positions, bool has_fgrams) {
  return positions * (4 * kIndex + (has_fgrams ? 2 * kId : 0));
}
std::int64_t plan_bytes(const RankLoad& load) {
  const std::int64_t of_node = 4 * kIndex + kId;  // token, parent, depth, place; f-gram
  return load.trie_nodes * of_node + (2 * load.rows_asked + load.rows_served) * kId +
         (load.token_rows + load.token_rows_served) * kId;
}

const std::int64_t bytes_at_start = peak_memory_bytes();

}  // namespace

std::int64_t program_bytes() {
  constexpr std::int64_t kTakenLater = std::int64_t{38} << 20;
  return bytes_at_start + kTakenLater;
}

std::int64_t RankMemory::device_bytes() const {
  std::int64_t sum = 0;
  for (const MemoryItem& item : items) sum += item.main + item.fgram;
  return sum;
}

std::int64_t RankMemory::host_bytes() const {
  std::int64_t sum = 0;
  for (const MemoryItem& item : items) sum += item.host;
  return sum;
}

const MemoryItem& RankMemory::item(const std::string& name) const {
  for (const MemoryItem& item : items)
    if (item.name == name) return item;
  throw std::out_of_range("no memory is planned for " + name);
}

VocabularyBytes vocabulary_bytes(const FgramVocabulary& vocabulary) {
  const VocabularyBytes by_size =
      vocabulary_bytes(vocabulary.size(), vocabulary.token_vocabulary_size());
  return {vocabulary.size(), vocabulary.memory_bytes() - by_size.mapped_bytes,
          by_size.mapped_bytes};
}

VocabularyBytes vocabulary_bytes(std::int64_t fgrams, std::int64_t token_vocabulary) {
  const std::int64_t token_bytes = token_vocabulary <= (1 << 16) ? 2 : 4;
  return {fgrams, fgrams * kIndexBytes, fgrams * (kIndex + token_bytes)};
}

RankMemory plan_memory(const RunConfig& config, const PlanGrids& grids, int rank,
                       const RankLoad& load, const VocabularyBytes& vocabulary) {
  const ModelConfig& model = config.model;
  const DType dtype = config.compute.dtype;
  const bool has_fgrams = model.fgram.layers > 0;
  const StateBytes main = state_bytes(config, main_parameter_specs(model), config.parallel.main,
                                      grids.main_tp, grids.main_dp, rank);
  const std::int64_t positions = config.trainer.microbatch_tokens;
  StateBytes fgram;
  std::int64_t fgram_activations = 0, fgram_integers = 0;
  if (has_fgrams) {
    fgram = state_bytes(config, fgram_parameter_specs(model), config.parallel.fgram, grids.fgram_tp,
                        grids.fgram_dp, rank);
    fgram_activations = signed_bytes(
        FgramModel::training_bytes(model, tensor_parallel(config.parallel.fgram), dtype,
                                   static_cast<std::int64_t>(load.chunks.size())));
    fgram_integers = 3 * model.fgram_chunk_nodes * kIndex;
  }
  const std::int64_t main_activations = signed_bytes(
      MainModel::training_bytes(model, positions, tensor_parallel(config.parallel.main),
                                config.compute.recompute, dtype, config.compute.device));
  RankMemory memory;
  memory.items = {
      {"parameters", main.parameters, fgram.parameters, 0},
      {"gradients", main.gradients, fgram.gradients, 0},
      {"AdamW moments", main.moments, fgram.moments, 0},
      {"activations", main_activations, fgram_activations, 0},
      {"indices", positions * 6 * kIndex, fgram_integers,
       positions * 3 * kIndex + fgram_integers + load.trie_nodes * kIndex},
  };
  // The one that is trained on, those made ahead, and the one being made.
  const std::int64_t batches = config.data.prefetch + 2;
  const std::int64_t own_positions =
      sequences_of_rank(config, grids, rank) * config.trainer.sequence_length;
  if (has_fgrams) {
    memory.items.push_back({"exchange of rows", 0, exchange_bytes(config, grids, load), 0});
    memory.items.push_back({"f-gram plans", 0, 0, batches * plan_bytes(load)});
    memory.items.push_back({"f-gram index", 0, 0, vocabulary.index_bytes});
  }
  if (main.under_way + fgram.under_way > 0) {
    const bool on_device = config.compute.device != Device::cpu;
    memory.items.push_back({"reductions under way", on_device ? 0 : main.under_way,
                            on_device ? 0 : fgram.under_way,
                            on_device ? main.under_way + fgram.under_way : 0});
  }
  memory.items.push_back({"batches", 0, 0, batches * batch_bytes(own_positions, has_fgrams)});
  // A save copies values and moments to the host where they lie on a device, and once more what the
  // rank writes, its slices, where it is written while training goes on.
  std::int64_t copies = config.compute.device == Device::cpu
                            ? 0
                            : main.values + main.moments + fgram.values + fgram.moments;
  if (config.checkpoint.async) copies += main.written + fgram.written;
  if (copies > 0) memory.items.push_back({"copies for checkpoints", 0, 0, copies});
  memory.items.push_back({"program and libraries", 0, 0, program_bytes()});
  return memory;
}

}  // namespace scone

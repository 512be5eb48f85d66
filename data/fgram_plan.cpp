#include "data/fgram_plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "parallel/sharding.h"

namespace scone {
namespace {

std::uint64_t hash_of(std::int64_t value, std::uint64_t seed) {  // splitmix64's finaliser
  std::uint64_t hash = static_cast<std::uint64_t>(value) + seed;
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9ULL;
  hash = (hash ^ (hash >> 27)) * 0x94d049bb133111ebULL;
  return hash ^ (hash >> 31);
}

int hashed_rank(std::int64_t value, std::uint64_t seed, int ranks) {
  return static_cast<int>(hash_of(value, seed) % static_cast<std::uint64_t>(ranks));
}

constexpr std::uint64_t group_seed = 0x9e3779b97f4a7c15ULL, member_seed = 0x2545f4914f6cdd1dULL;

void sort_unique(std::vector<std::int64_t>& values) {
  std::sort(values.begin(), values.end());
  values.erase(std::unique(values.begin(), values.end()), values.end());
}

/// Place of `value` in the ascending `all`, which holds it.
std::int64_t place_of(const std::vector<std::int64_t>& all, std::int64_t value) {
  return std::lower_bound(all.begin(), all.end(), value) - all.begin();
}

}  // namespace

FgramPlanner::FgramPlanner(const FgramVocabulary& vocabulary, Communicator& world,
                           const ProcessGrid& main, const ProcessGrid& fgram)
    : vocabulary_(vocabulary),
      world_(world.split_on_host(0, "plan of the world")),
      main_tensor_(main.tensor().split_on_host(0, "plan of main tensor-parallel")),
      fgram_tensor_(fgram.tensor().split_on_host(0, "plan of fgram tensor-parallel")),
      fgram_groups_(fgram.data_size()) {}

FgramPlanner::~FgramPlanner() = default;

void FgramPlanner::cancel() {
  for (Communicator* communicator : {world_.get(), main_tensor_.get(), fgram_tensor_.get()})
    communicator->cancel();
}

FgramPlan FgramPlanner::plan(std::span<const std::int64_t> ids, std::span<const std::uint8_t> cell,
                             int cells) {
  const int members = fgram_tensor_->size();
  std::vector<int> owner(ids.size());
  const auto count = static_cast<std::int64_t>(ids.size());
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t id = ids[static_cast<std::size_t>(i)];
    owner[static_cast<std::size_t>(i)] =
        hashed_rank(vocabulary_.leading_bigram(id), group_seed, fgram_groups_) * members +
        hashed_rank(id, member_seed, members);
  }
  FgramPlan plan;
  plan.rows = plan_rows(*world_, ids, owner, cell, cells);

  // What the group computes is what any of its ranks is asked for.
  std::vector<std::int64_t> group_ids = plan.rows.served;
  sort_unique(group_ids);
  if (members > 1) {
    const auto gathered = fgram_tensor_->all_gather(std::as_bytes(std::span(group_ids)));
    group_ids.clear();
    for (const auto& bytes : gathered) {
      const std::size_t begin = group_ids.size();
      group_ids.resize(begin + bytes.size() / sizeof(std::int64_t));
      if (!bytes.empty()) std::memcpy(group_ids.data() + begin, bytes.data(), bytes.size());
    }
    sort_unique(group_ids);
  }
  plan.trie = build_fgram_trie(vocabulary_, group_ids);
  for (std::int64_t& row : plan.rows.served)
    row = plan.trie.node_of_fgram[static_cast<std::size_t>(place_of(group_ids, row))];
  if (fgram_tensor_->rank() == 0) plan.nodes = plan.trie.size() - plan.trie.roots;
  plan.roots = count_roots(plan.trie);
  if (main_tensor_->size() > 1) share_tokens(plan);
  return plan;
}

FgramPlan FgramPlanner::plan_unshared(std::span<const std::int64_t> ids,
                                      std::span<const std::uint8_t> cell, int cells) {
  if (fgram_tensor_->size() > 1)
    throw std::logic_error("plan_unshared with a tensor-parallel f-gram model");
  std::vector<std::int64_t> matches(ids.size());
  std::iota(matches.begin(), matches.end(), 0);
  const std::vector<int> owner(ids.size(), world_->rank());
  FgramPlan plan;
  plan.rows = plan_rows(*world_, matches, owner, cell, cells);
  FgramTrie& trie = plan.trie;
  std::vector<std::int64_t> leaf;
  for (const std::int64_t id : ids) {
    const std::vector<std::int32_t> tokens = vocabulary_.tokens(id);
    for (std::size_t depth = 0; depth < tokens.size(); ++depth) {
      trie.parent.push_back(depth == 0 ? -1 : static_cast<std::int32_t>(trie.size()) - 1);
      trie.token.push_back(tokens[depth]);
      trie.depth.push_back(static_cast<std::int32_t>(depth));
    }
    leaf.push_back(trie.size() - 1);
    ++trie.roots;
  }
  for (std::int64_t& row : plan.rows.served) row = leaf[static_cast<std::size_t>(row)];
  plan.nodes = trie.size() - trie.roots;
  plan.roots = trie.roots;
  if (main_tensor_->size() > 1) share_tokens(plan);
  return plan;
}

std::int64_t FgramPlanner::count_roots(const FgramTrie& trie) {
  // Each root token is counted by one rank, to which every group that has it tells so.
  const auto ranks = static_cast<std::size_t>(world_->size());
  if (ranks == 1) return trie.roots;
  std::vector<std::int64_t> counts(ranks, 0);
  std::vector<std::pair<std::size_t, std::int64_t>> told;
  for (std::size_t i = 0; fgram_tensor_->rank() == 0 && i < trie.token.size(); ++i)
    if (trie.parent[i] < 0)
      told.emplace_back(static_cast<std::size_t>(trie.token[i]) % ranks, trie.token[i]);
  std::sort(told.begin(), told.end());
  std::vector<std::int64_t> sent;
  for (const auto& [rank, token] : told) {
    ++counts[rank];
    sent.push_back(token);
  }
  const std::vector<std::int64_t> receive_counts = world_->exchange_counts(counts);
  std::int64_t total = 0;
  for (const std::int64_t count : receive_counts) total += count;
  std::vector<std::int64_t> received(static_cast<std::size_t>(total));
  world_->all_to_all(std::as_bytes(std::span(sent)), counts,
                     std::as_writable_bytes(std::span(received)), receive_counts,
                     sizeof(std::int64_t));
  sort_unique(received);
  return static_cast<std::int64_t>(received.size());
}

void FgramPlanner::share_tokens(FgramPlan& plan) {
  std::vector<std::int64_t> tokens(plan.trie.token.begin(), plan.trie.token.end());
  sort_unique(tokens);
  const std::int64_t extent =
      slice_of(vocabulary_.token_vocabulary_size(), {0, main_tensor_->size()}).count;
  std::vector<int> owner;
  for (const std::int64_t token : tokens) owner.push_back(static_cast<int>(token / extent));
  plan.tokens = plan_rows(*main_tensor_, tokens, owner);
  for (std::int64_t& row : plan.tokens.served) row -= extent * main_tensor_->rank();
  for (std::int32_t& token : plan.trie.token)
    token = static_cast<std::int32_t>(place_of(tokens, token));
  plan.token_rows = static_cast<std::int64_t>(tokens.size());
}

}  // namespace scone

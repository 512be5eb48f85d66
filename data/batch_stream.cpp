#include "data/batch_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "data/match_annotations.h"
#include "data/sample_permutation.h"
#include "parallel/error.h"

namespace scone {
namespace {

void check(const TokenCorpus& corpus, const FgramVocabulary* vocabulary,
           const BatchStreamOptions& options, const DataState& start) {
  if (options.sequence_length < 1 || options.batch_sequences < 1 || options.prefetch < 1 ||
      options.data.count < 1 || options.data.index < 0 ||
      options.data.index >= options.data.count || options.share.count < 1 ||
      options.share.index < 0 || options.share.index >= options.share.count || start.epoch < 0 ||
      start.sample < 0) {
    throw std::invalid_argument("BatchStream: options or start out of range");
  }
  const std::string corpus_path = corpus.shards().empty() ? "" : corpus.shards()[0].path.string();
  if (corpus.tokens() < options.sequence_length + 1) {
    throw InputError(
        fmt::format("{}: the corpus holds {} tokens, expected at least one sequence and its last "
                    "target, {}; give more text or "
                    "lower the sequence length",
                    corpus_path, corpus.tokens(), options.sequence_length + 1));
  }
  if (options.batch_sequences < options.data.count) {
    throw InputError(
        fmt::format("a global batch of {} sequences cannot feed {} data-parallel ranks; raise the "
                    "batch's tokens, lower the "
                    "sequence length, or use fewer ranks",
                    options.batch_sequences, options.data.count));
  }
  if (vocabulary && vocabulary->tokenizer_fingerprint() != corpus.tokenizer_fingerprint()) {
    throw InputError(fmt::format(
        "{}: the shards' tokenizer is {}, the f-gram vocabulary's {}; make the f-grams from these "
        "shards with "
        "`scone fgrams`",
        corpus_path, corpus.tokenizer_fingerprint(), vocabulary->tokenizer_fingerprint()));
  }
}

/// Makes batches one after another; no thread of its own.
class BatchMaker {
 public:
  BatchMaker(const TokenCorpus& corpus, const FgramVocabulary* vocabulary,
             const BatchStreamOptions& options, DataState start, FgramPlanner* planner)
      : corpus_(corpus),
        vocabulary_(vocabulary),
        matches_(vocabulary ? std::make_unique<MatchAnnotations>(corpus, *vocabulary) : nullptr),
        planner_(planner),
        options_(options),
        // A window has at least one position whose target is inside the corpus.
        samples_((corpus.tokens() - 1 + options.sequence_length - 1) / options.sequence_length),
        next_(start),
        permutation_(options.seed, start.epoch, samples_),
        first_slot_(options.batch_sequences * options.data.index / options.data.count),
        last_slot_(options.batch_sequences * (options.data.index + 1) / options.data.count) {
    if (start.sample > samples_) {
      throw InputError(
          fmt::format("the data order's position is sample {} of epoch {}, but an epoch has {} "
                      "samples; resume with the shards "
                      "and the sequence length that the run began with",
                      start.sample, start.epoch, samples_));
    }
    if (next_.sample == samples_) begin_epoch();
  }

  std::int64_t samples() const { return samples_; }

  Batch make() {
    Batch batch;
    try {
      read(batch);
    } catch (...) {
      if (planner_) planner_->refuse(BatchCells::count);  // else the other ranks would wait
      throw;
    }
    if (planner_) {
      cell_rows(batch);
      batch.plan = options_.share_fgrams
                       ? planner_->plan(batch.fgrams, cell_, BatchCells::count)
                       : planner_->plan_unshared(batch.fgrams, cell_, BatchCells::count);
    }
    batch.state_after = next_;
    return batch;
  }

 private:
  void read(Batch& batch) {
    batch.sequences = last_slot_ - first_slot_;
    batch.length = options_.sequence_length;
    const auto positions = static_cast<std::size_t>(batch.sequences * batch.length);
    batch.tokens.assign(positions, 0);
    batch.targets.assign(positions, -1);
    batch.attention_start.assign(positions, 0);
    batch.match.assign(positions, -1);
    batch.row_of_position.assign(positions, -1);
    for (std::int64_t slot = 0; slot < options_.batch_sequences; ++slot) {
      if (slot >= first_slot_ && slot < last_slot_) {
        const std::int64_t sample = options_.shuffle ? permutation_(next_.sample) : next_.sample;
        fill_sequence(sample, slot - first_slot_, batch);
      }
      if (++next_.sample == samples_) begin_epoch();
    }
    number_rows(batch);
  }

  void begin_epoch() {
    next_ = {next_.epoch + 1, 0};
    permutation_ = SamplePermutation(options_.seed, next_.epoch, samples_);
  }

  void fill_sequence(std::int64_t sample, std::int64_t sequence, Batch& batch) {
    const std::int64_t first = sample * options_.sequence_length;
    // Positions that have a target in the corpus; the rest of the last window is padding.
    const std::int64_t used = std::min(options_.sequence_length, corpus_.tokens() - 1 - first);
    window_.resize(static_cast<std::size_t>(used) + 1);
    corpus_.read(first, window_);
    const auto base = static_cast<std::size_t>(sequence * options_.sequence_length);
    std::copy_n(window_.begin(), used, batch.tokens.begin() + static_cast<std::ptrdiff_t>(base));
    for (std::int64_t begin = 0; begin < used;) {
      // One document's piece of the window: [begin, end), and whether the token after it is the
      // document's too.
      const std::int64_t document_end = corpus_.document_of(first + begin).end - first;
      const std::int64_t end = std::min(document_end, used);
      const std::span piece(window_.data() + begin, static_cast<std::size_t>(end - begin));
      if (vocabulary_) {
        matches_->match(
            first + begin, piece,
            std::span(batch.match).subspan(base + static_cast<std::size_t>(begin), piece.size()));
      }
      for (std::int64_t i = begin; i < end; ++i) {
        const std::size_t at = base + static_cast<std::size_t>(i);
        const bool has_target = options_.attention_across_documents || i + 1 < document_end;
        if (has_target) {
          batch.targets[at] = window_[static_cast<std::size_t>(i) + 1];
          ++batch.local_targets;
        }
        if (!options_.attention_across_documents) {
          batch.attention_start[at] = static_cast<std::int32_t>(begin);
        }
      }
      begin = end;
    }
    if (!options_.attention_across_documents) {
      // Padding attends to padding only.
      for (std::int64_t i = used; i < options_.sequence_length; ++i) {
        batch.attention_start[base + static_cast<std::size_t>(i)] = static_cast<std::int32_t>(used);
      }
    }
  }

  void number_rows(Batch& batch) const {
    std::vector<std::int64_t> all;
    all.reserve(batch.match.size());
    for (const std::int64_t id : batch.match) {
      if (id >= 0) all.push_back(id);
    }
    if (options_.share_fgrams) {
      std::sort(all.begin(), all.end());
      all.erase(std::unique(all.begin(), all.end()), all.end());
    }
    const Slice share = slice_of(static_cast<std::int64_t>(all.size()), options_.share);
    batch.fgrams.assign(all.begin() + share.begin, all.begin() + share.begin + share.count);
    std::int64_t match = 0;
    for (std::size_t i = 0; i < batch.match.size(); ++i) {
      if (batch.match[i] < 0) continue;
      const std::int64_t at =
          options_.share_fgrams
              ? std::lower_bound(all.begin(), all.end(), batch.match[i]) - all.begin()
              : match++;
      const bool own = at >= share.begin && at < share.begin + share.count;
      batch.row_of_position[i] = own ? static_cast<std::int32_t>(at - share.begin) : -2;
    }
  }

  /// The cell of each row: by the first and the last microbatch that uses it.
  void cell_rows(const Batch& batch) {
    cell_.assign(batch.fgrams.size(), BatchCells::used_later | BatchCells::done_early);
    const std::int64_t size =
        options_.microbatch_sequences > 0 ? options_.microbatch_sequences : batch.sequences;
    const std::int64_t last = (batch.sequences - 1) / size;
    for (std::size_t i = 0; i < batch.row_of_position.size(); ++i) {
      if (batch.row_of_position[i] < 0) continue;
      const std::int64_t microbatch = static_cast<std::int64_t>(i) / batch.length / size;
      std::uint8_t& cell = cell_[static_cast<std::size_t>(batch.row_of_position[i])];
      if (microbatch == 0) cell &= static_cast<std::uint8_t>(~BatchCells::used_later);
      if (microbatch == last) cell &= static_cast<std::uint8_t>(~BatchCells::done_early);
    }
  }

  const TokenCorpus& corpus_;
  const FgramVocabulary* vocabulary_;
  const std::unique_ptr<MatchAnnotations> matches_;
  FgramPlanner* planner_;
  const BatchStreamOptions options_;
  const std::int64_t samples_;
  DataState next_;
  SamplePermutation permutation_;
  const std::int64_t first_slot_, last_slot_;  // this rank's of the global batch
  std::vector<std::int32_t> window_;
  std::vector<std::uint8_t> cell_;
};

}  // namespace

struct BatchStream::State {
  State(const TokenCorpus& corpus, const FgramVocabulary* vocabulary,
        const BatchStreamOptions& options, DataState start, FgramPlanner* batch_planner)
      : maker(corpus, vocabulary, options, start, batch_planner),
        planner(batch_planner),
        allowed(options.prefetch),
        thread([this] { prepare(); }) {}

  ~State() {
    // Other ranks wait for this one's part of the plans up to the number allowed, which is the same
    // on all of them; unless a rank has failed and the job is about to end.
    if (planner && std::uncaught_exceptions() > 0) planner->cancel();
    {
      const std::lock_guard lock(mutex);
      stopping = true;
    }
    changed.notify_all();
    thread.join();
  }

  void prepare() {
    try {
      for (;;) {
        {
          std::unique_lock lock(mutex);
          changed.wait(lock, [this] { return stopping || made < allowed; });
          if (stopping && (planner == nullptr || made == allowed)) return;
          ++made;
        }
        Batch batch = maker.make();
        const std::lock_guard lock(mutex);
        ready.push_back(std::move(batch));
        changed.notify_all();
      }
    } catch (...) {
      const std::lock_guard lock(mutex);
      error = std::current_exception();
      changed.notify_all();
    }
  }

  BatchMaker maker;  // used by the thread alone once it runs
  FgramPlanner* const planner;
  std::mutex mutex;
  std::condition_variable changed;
  std::int64_t made = 0, allowed;  // batches begun, and those that next() has made room for
  std::deque<Batch> ready;
  std::exception_ptr error;
  bool stopping = false;
  double wait_seconds = 0;
  std::thread thread;  // last: starts when all else is there
};

BatchStream::BatchStream(const TokenCorpus& corpus, const FgramVocabulary* vocabulary,
                         const BatchStreamOptions& options, DataState start,
                         FgramPlanner* planner) {
  check(corpus, vocabulary, options, start);
  state_ = std::make_unique<State>(corpus, vocabulary, options, start, planner);
}
BatchStream::~BatchStream() = default;

Batch BatchStream::next() {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return !state_->ready.empty() || state_->error; });
  state_->wait_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (state_->ready.empty()) std::rethrow_exception(state_->error);
  Batch batch = std::move(state_->ready.front());
  state_->ready.pop_front();
  ++state_->allowed;
  state_->changed.notify_all();
  return batch;
}

double BatchStream::last_wait_seconds() const { return state_->wait_seconds; }
std::int64_t BatchStream::samples_per_epoch() const { return state_->maker.samples(); }

}  // namespace scone

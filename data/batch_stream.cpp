#include "data/batch_stream.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "data/match_annotations.h"
#include "parallel/error.h"

namespace scone {
namespace {

std::string first_path(const TokenCorpus& corpus) {
  return corpus.shards().empty() ? "" : corpus.shards()[0].path.string();
}

void check(const TokenMixture& mixture, const FgramMatcher* matcher,
           const BatchStreamOptions& options, const DataState& start) {
  if (options.sequence_length < 1 || options.batch_sequences < 1 || options.prefetch < 1 ||
      options.read_ahead < 0 || options.data.count < 1 || options.data.index < 0 ||
      options.data.index >= options.data.count || options.share.count < 1 ||
      options.share.index < 0 || options.share.index >= options.share.count || start.epoch < 0 ||
      start.sample < 0) {
    throw std::invalid_argument("BatchStream: options or start out of range");
  }
  for (std::int64_t c = 0; c < mixture.size(); ++c) {
    const TokenCorpus& corpus = mixture.corpus(c);
    if (corpus.tokens() > options.sequence_length) continue;
    throw InputError(
        fmt::format("{}: the corpus holds {} tokens, expected at least one sequence and its last "
                    "target, {}; give more text or lower the sequence length",
                    first_path(corpus), corpus.tokens(), options.sequence_length + 1));
  }
  if (options.batch_sequences < options.data.count) {
    throw InputError(
        fmt::format("a global batch of {} sequences cannot feed {} data-parallel ranks; raise the "
                    "batch's tokens, lower the "
                    "sequence length, or use fewer ranks",
                    options.batch_sequences, options.data.count));
  }
  if (matcher && matcher->tokenizer_fingerprint() != mixture.tokenizer_fingerprint()) {
    throw InputError(fmt::format(
        "{}: the shards' tokenizer is {}, the f-gram vocabulary's {}; make the f-grams from these "
        "shards with "
        "`scone fgrams`",
        first_path(mixture.corpus(0)), mixture.tokenizer_fingerprint(),
        matcher->tokenizer_fingerprint()));
  }
}

/// Page faults of this thread that had to wait for a disk.
std::int64_t disk_waits() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_majflt;
}

/// Asks the disk for the tokens of batches that come later, each sequence or run of neighbouring
/// ones as one request, so that many are under way at once and none is waited for. Costs a few
/// system calls a batch while everything is in the page cache.
class ReadAhead {
 public:
  ReadAhead(const TokenMixture& mixture, std::int64_t sequence_length)
      : mixture_(mixture), length_(sequence_length) {}

  /// samples: of one rank's part of one batch, in their order.
  void ask(std::vector<SampleOrder::Place> samples) {
    const std::int64_t waits = disk_waits();
    const bool waited = waits != waits_;
    waits_ = waits;
    if (!waited && looks_cached(samples)) return;
    std::sort(samples.begin(), samples.end(), [](const auto& a, const auto& b) {
      return a.corpus != b.corpus ? a.corpus < b.corpus : a.sample < b.sample;
    });
    for (std::size_t begin = 0; begin < samples.size();) {
      std::size_t end = begin + 1;
      while (end < samples.size() && samples[end].corpus == samples[begin].corpus &&
             samples[end].sample <= samples[end - 1].sample + 1)
        ++end;
      const std::int64_t count = samples[end - 1].sample - samples[begin].sample + 1;
      mixture_.corpus(samples[begin].corpus)
          .will_read(samples[begin].sample * length_, count * length_ + 1);
      begin = end;
    }
  }

 private:
  static constexpr std::size_t probes_ = 4;

  bool looks_cached(const std::vector<SampleOrder::Place>& samples) const {
    const std::size_t step = std::max<std::size_t>(1, samples.size() / probes_);
    for (std::size_t i = 0; i < samples.size(); i += step) {
      const SampleOrder::Place& place = samples[i];
      if (!mixture_.corpus(place.corpus).is_cached(place.sample * length_, length_ + 1))
        return false;
    }
    return true;
  }

  const TokenMixture& mixture_;
  const std::int64_t length_;
  std::int64_t waits_ = 0;
};

/// Makes batches one after another; no thread of its own.
class BatchMaker {
 public:
  BatchMaker(const TokenMixture& mixture, const FgramMatcher* matcher,
             const BatchStreamOptions& options, DataState start, FgramPlanner* planner)
      : mixture_(mixture),
        matcher_(matcher),
        planner_(planner),
        options_(options),
        order_(mixture, options.sequence_length, options.seed, options.shuffle),
        samples_(order_.samples_per_epoch()),
        next_(start),
        read_ahead_(mixture_, options.sequence_length),
        asked_(start),
        first_slot_(options.batch_sequences * options.data.index / options.data.count),
        last_slot_(options.batch_sequences * (options.data.index + 1) / options.data.count) {
    for (std::int64_t c = 0; matcher != nullptr && c < mixture_.size(); ++c)
      matches_.emplace_back(mixture_.corpus(c), *matcher);
    if (start.sample > samples_) {
      throw InputError(
          fmt::format("the data order's position is sample {} of epoch {}, but an epoch has {} "
                      "samples; resume with the shards "
                      "and the sequence length that the run began with",
                      start.sample, start.epoch, samples_));
    }
    advance(next_, 0);
    advance(asked_, 0);
  }

  std::int64_t samples() const { return samples_; }

  /// `batch`: one that is no longer used, whose memory is taken over.
  Batch make(Batch batch) {
    batch.fgrams.clear();
    batch.local_targets = 0;
    batch.plan = {};
    try {
      // At the beginning for several batches, then for the one that comes into reach.
      const std::int64_t reach = made_ + 1 + options_.prefetch + options_.read_ahead;
      for (; asked_batches_ < reach; ++asked_batches_) {
        coming_.push_back(take_samples(asked_));
        if (options_.read_ahead > 0) read_ahead_.ask(coming_.back());
      }
      ++made_;
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
  /// Goes on by `samples` places.
  void advance(DataState& state, std::int64_t samples) const {
    state.sample += samples;
    state.epoch += state.sample / samples_;
    state.sample %= samples_;
  }

  /// This rank's samples of the batch that begins at `state`, which goes on to the next batch.
  std::vector<SampleOrder::Place> take_samples(DataState& state) {
    std::vector<SampleOrder::Place> samples;
    samples.reserve(static_cast<std::size_t>(last_slot_ - first_slot_));
    DataState at = state;
    advance(at, first_slot_);
    for (std::int64_t slot = first_slot_; slot < last_slot_; ++slot) {
      samples.push_back(order_.at(at.epoch, at.sample));
      advance(at, 1);
    }
    advance(state, options_.batch_sequences);
    return samples;
  }

  void read(Batch& batch) {
    batch.sequences = last_slot_ - first_slot_;
    batch.length = options_.sequence_length;
    const auto positions = static_cast<std::size_t>(batch.sequences * batch.length);
    batch.tokens.resize(positions);
    batch.targets.resize(positions);
    batch.attention_start.resize(positions);
    if (matcher_) batch.match.assign(positions, -1);
    batch.row_of_position.assign(positions, -1);
    std::int64_t sequence = 0;
    for (const SampleOrder::Place& place : coming_.front()) fill_sequence(place, sequence++, batch);
    coming_.pop_front();
    advance(next_, options_.batch_sequences);
    if (matcher_) number_rows(batch);
  }

  void fill_sequence(const SampleOrder::Place& place, std::int64_t sequence, Batch& batch) {
    const TokenCorpus& corpus = mixture_.corpus(place.corpus);
    const std::int64_t length = options_.sequence_length;
    const std::int64_t first = place.sample * length;
    // Positions that have a target in the corpus; the rest of the last window is padding.
    const std::int64_t used = std::min(length, corpus.tokens() - 1 - first);
    const std::int64_t base = sequence * length;
    std::int32_t* const tokens = batch.tokens.data() + base;
    std::int32_t* const targets = batch.targets.data() + base;
    std::int32_t* const attention_start = batch.attention_start.data() + base;
    const std::span inputs(tokens, static_cast<std::size_t>(used));
    corpus.read_window(first, inputs, {targets, inputs.size()});
    std::fill(tokens + used, tokens + length, 0);
    std::fill(targets + used, targets + length, -1);
    batch.local_targets += used;
    const bool across = options_.attention_across_documents;
    if (across) {
      std::fill_n(attention_start, length, 0);
    } else {  // padding attends to padding only
      std::fill(attention_start + used, attention_start + length, static_cast<std::int32_t>(used));
    }
    if (across && matcher_ == nullptr) return;
    corpus.document_ends(first, used, document_ends_);
    std::int64_t begin = 0;
    for (const std::int64_t document_end : document_ends_) {
      // One document's piece of the window: [begin, end).
      const std::int64_t end = std::min(document_end - first, used);
      if (matcher_) {
        const auto piece = static_cast<std::size_t>(end - begin);
        matches_[static_cast<std::size_t>(place.corpus)].match(
            first + begin, inputs.subspan(static_cast<std::size_t>(begin), piece),
            std::span(batch.match).subspan(static_cast<std::size_t>(base + begin), piece));
      }
      if (!across) {
        std::fill(attention_start + begin, attention_start + end, static_cast<std::int32_t>(begin));
        if (end == document_end - first) {  // the token after it is another document's
          targets[end - 1] = -1;
          --batch.local_targets;
        }
      }
      begin = end;
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

  const TokenMixture mixture_;
  const FgramMatcher* matcher_;
  std::deque<MatchAnnotations> matches_;  // of each corpus, where there is a vocabulary
  FgramPlanner* planner_;
  const BatchStreamOptions options_;
  SampleOrder order_;
  const std::int64_t samples_;
  DataState next_;
  ReadAhead read_ahead_;
  DataState asked_;  // where the first batch begins that is not among `coming_`
  std::deque<std::vector<SampleOrder::Place>> coming_;  // samples of the next batches
  std::int64_t made_ = 0, asked_batches_ = 0;
  const std::int64_t first_slot_, last_slot_;  // this rank's of the global batch
  std::vector<std::int64_t> document_ends_;
  std::vector<std::uint8_t> cell_;
};

}  // namespace

struct BatchStream::State {
  State(const TokenMixture& mixture, const FgramMatcher* matcher, const BatchStreamOptions& options,
        DataState start, FgramPlanner* batch_planner)
      : maker(mixture, matcher, options, start, batch_planner),
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
    Batch used;
    try {
      for (;;) {
        {
          std::unique_lock lock(mutex);
          changed.wait(lock, [this] { return stopping || made < allowed; });
          if (stopping && (planner == nullptr || made == allowed)) return;
          ++made;
          used = {};
          if (!done_with.empty()) {
            used = std::move(done_with.back());
            done_with.pop_back();
          }
        }
        Batch batch = maker.make(std::move(used));
        {
          const std::lock_guard lock(mutex);
          ready.push_back(std::move(batch));
        }
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
  std::vector<Batch> done_with;  // given back by next(), for their memory
  std::exception_ptr error;
  bool stopping = false;
  double wait_seconds = 0;
  std::thread thread;  // last: starts when all else is there
};

BatchStream::BatchStream(const TokenMixture& mixture, const FgramMatcher* matcher,
                         const BatchStreamOptions& options, DataState start,
                         FgramPlanner* planner) {
  check(mixture, matcher, options, start);
  state_ = std::make_unique<State>(mixture, matcher, options, start, planner);
}
BatchStream::~BatchStream() = default;

Batch BatchStream::next() {
  Batch batch;
  next(batch);
  return batch;
}

void BatchStream::next(Batch& batch) {
  const auto begin = std::chrono::steady_clock::now();
  std::unique_lock lock(state_->mutex);
  state_->changed.wait(lock, [this] { return !state_->ready.empty() || state_->error; });
  state_->wait_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  if (state_->ready.empty()) std::rethrow_exception(state_->error);
  if (!batch.tokens.empty()) state_->done_with.push_back(std::move(batch));
  batch = std::move(state_->ready.front());
  state_->ready.pop_front();
  ++state_->allowed;
  lock.unlock();
  state_->changed.notify_all();
}

double BatchStream::last_wait_seconds() const { return state_->wait_seconds; }
std::int64_t BatchStream::samples_per_epoch() const { return state_->maker.samples(); }

}  // namespace scone

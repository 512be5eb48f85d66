#include "data/document_encoder.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <deque>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "data/utf8.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::size_t group_bytes = 256 << 10;     // of text, encoded as one task
constexpr std::size_t in_flight_bytes = 64 << 20;  // of text, in all tasks

/// Encodes text that may be ill-formed. Safe to use from several threads.
class TextEncoder {
 public:
  explicit TextEncoder(const Tokenizer& tokenizer) : tokenizer_(tokenizer) {}

  void encode(std::string_view text, std::vector<std::int32_t>& ids) {
    IllFormed found = find_ill_formed_utf8(text);
    std::size_t done = 0;
    while (found.offset != std::string_view::npos) {
      if (found.offset > done) tokenizer_.encode(text.substr(done, found.offset - done), ids);
      done = found.offset + found.length;
      for (const char byte : text.substr(found.offset, found.length)) {
        ids.push_back(byte_token(static_cast<unsigned char>(byte)));
      }
      found = find_ill_formed_utf8(text, done);
    }
    if (done < text.size()) tokenizer_.encode(text.substr(done), ids);
  }

 private:
  std::int32_t byte_token(unsigned char byte) {
    std::call_once(once_, [this] { find_byte_tokens(); });
    if (byte_tokens_[byte] >= 0) return byte_tokens_[byte];
    throw InputError(
        fmt::format("{}: the tokenizer has no token for the byte 0x{:02X}, so invalid UTF-8 cannot "
                    "be kept; use "
                    "--invalid-utf8 replace",
                    tokenizer_.file().string(), static_cast<unsigned>(byte)));
  }

  void find_byte_tokens() {
    byte_tokens_.fill(-1);
    for (std::int64_t id = tokenizer_.vocabulary_size() - 1; id >= 0; --id) {
      const std::string bytes = tokenizer_.token_bytes(static_cast<std::int32_t>(id));
      if (bytes.size() != 1) continue;
      byte_tokens_[static_cast<unsigned char>(bytes[0])] = static_cast<std::int32_t>(id);
    }
  }

  const Tokenizer& tokenizer_;
  std::once_flag once_;
  std::array<std::int32_t, 256> byte_tokens_{};
};

using Group = std::vector<std::string>;
using EncodedGroup = std::vector<EncodedDocument>;

/// Threads that work tasks off in their order. Tasks not yet begun are dropped when it goes.
class WorkerPool {
 public:
  explicit WorkerPool(int threads) {
    for (int i = 0; i < std::max(1, threads); ++i) threads_.emplace_back([this] { work(); });
  }
  ~WorkerPool() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    ready_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  std::future<EncodedGroup> submit(std::packaged_task<EncodedGroup()> task) {
    std::future<EncodedGroup> result = task.get_future();
    {
      const std::lock_guard lock(mutex_);
      tasks_.push_back(std::move(task));
    }
    ready_.notify_one();
    return result;
  }

 private:
  void work() {
    for (;;) {
      std::unique_lock lock(mutex_);
      ready_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
      if (stopping_) return;
      std::packaged_task<EncodedGroup()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::packaged_task<EncodedGroup()>> tasks_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace

void encode_documents(const Tokenizer& tokenizer, int threads,
                      const std::function<bool(std::string&)>& next_document,
                      const std::function<void(EncodedDocument&&)>& sink) {
  struct InFlight {
    std::future<EncodedGroup> result;
    std::size_t bytes;
  };
  TextEncoder encoder(tokenizer);
  auto encode_group = [&](const Group& group) {
    EncodedGroup encoded(group.size());
    for (std::size_t i = 0; i < group.size(); ++i) {
      encoder.encode(group[i], encoded[i].tokens);
      if (const std::int32_t end = tokenizer.end_of_document(); end >= 0) {
        encoded[i].tokens.push_back(end);
      }
      encoded[i].text_bytes = static_cast<std::int64_t>(group[i].size());
      encoded[i].text_hash = XXH3_64bits(group[i].data(), group[i].size());
    }
    return encoded;
  };
  std::deque<InFlight> in_flight;
  std::size_t bytes_in_flight = 0;
  WorkerPool pool(threads);  // goes before what its tasks use
  auto hand_out_oldest = [&] {
    EncodedGroup encoded = in_flight.front().result.get();
    bytes_in_flight -= in_flight.front().bytes;
    in_flight.pop_front();
    for (EncodedDocument& document : encoded) sink(std::move(document));
  };

  Group group;
  std::size_t bytes = 0;
  auto submit_group = [&] {
    auto shared = std::make_shared<Group>(std::exchange(group, {}));
    in_flight.push_back({pool.submit(std::packaged_task<EncodedGroup()>(
                             [shared, &encode_group] { return encode_group(*shared); })),
                         bytes});
    bytes_in_flight += std::exchange(bytes, 0);
  };
  for (std::string document; next_document(document);) {
    bytes += document.size();
    group.push_back(std::move(document));
    if (bytes >= group_bytes) submit_group();
    while (bytes_in_flight > in_flight_bytes) hand_out_oldest();
  }
  if (!group.empty()) submit_group();
  while (!in_flight.empty()) hand_out_oldest();
}

ValidationSplit::ValidationSplit(double fraction, Sink sink)
    : fraction_(fraction), sink_(std::move(sink)) {
  if (!(fraction >= 0) || fraction >= 1) {
    throw InputError(fmt::format(
        "--validation-fraction: expected 0 <= fraction < 1, found {}; give one such as 0.005",
        fraction));
  }
}

void ValidationSplit::add(EncodedDocument&& document) {
  ++documents_;
  constexpr double hashes = 18446744073709551616.0;  // 2^64
  const Side side =
      static_cast<double>(document.text_hash) < fraction_ * hashes ? Side::validation : Side::train;
  if (both_ || fraction_ == 0) {
    sink_(side, document);
  } else if (!holding_) {
    held_ = std::move(document);
    held_side_ = side;
    holding_ = true;
  } else if (side != held_side_) {
    both_ = true;
    finish();
    sink_(side, document);
  } else {
    // Validation has the low hashes, so the nearest to it is the lowest, and the nearest to
    // training the highest.
    const bool nearer = side == Side::train ? document.text_hash < held_.text_hash
                                            : document.text_hash > held_.text_hash;
    if (nearer) std::swap(held_, document);
    sink_(side, document);
  }
}

void ValidationSplit::finish() {
  if (!holding_) return;
  holding_ = false;
  Side side = held_side_;
  if (!both_) {
    // All documents belong to one side. A single one is for training.
    if (documents_ == 1) {
      side = Side::train;
    } else {
      side = held_side_ == Side::train ? Side::validation : Side::train;
    }
  }
  sink_(side, held_);
  held_ = {};
}

}  // namespace scone

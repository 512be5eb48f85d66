#include "checkpoint/checkpoint_writer.h"

#include <fmt/format.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/slice_file.h"
#include "parallel/watchdog.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Of manifest, names and HDF5's own, a rank and a dataset; more than they take.
constexpr std::int64_t kBytesOfRank = std::int64_t{64} << 10;
constexpr std::int64_t kBytesOfDataset = 1024;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// What a rank is going to write.
std::string describe_slices(std::span<const TensorSlice> slices) {
  nlohmann::json json = nlohmann::json::array();
  for (const TensorSlice& slice : slices) {
    json.push_back({slice.name, slice.global_shape, slice.begin, slice.values.shape()});
  }
  return json.dump();
}

struct SliceDescription {
  std::string name;
  Shape global_shape;
  Box box;
};

std::vector<SliceDescription> parse_slices(const std::string& text) {
  std::vector<SliceDescription> slices;
  for (const auto& json : nlohmann::json::parse(text)) {
    slices.push_back({json.at(0), json.at(1), {json.at(2), json.at(3)}});
  }
  return slices;
}

/// Bytes to copy to memory that is not read again soon.
struct Piece {
  std::byte* to;  // on a 16-byte boundary
  const std::byte* from;
  std::int64_t bytes;
};

/// Stores go around the caches where the processor can, which saves reading the lines that are
/// overwritten.
void copy_past_caches(const Piece& piece) {
  std::int64_t at = 0;
#ifdef __SSE2__
  for (; at + 16 <= piece.bytes; at += 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(piece.to + at),
                     _mm_loadu_si128(reinterpret_cast<const __m128i*>(piece.from + at)));
  }
  _mm_sfence();
#endif
  std::memcpy(piece.to + at, piece.from + at, static_cast<std::size_t>(piece.bytes - at));
}

/// JSON of one line; what is not UTF-8 in a path or message is replaced.
std::string text_of(const nlohmann::json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

/// A rank's part of the outcome, as it tells the others.
std::string failure(const std::string& error) { return text_of({{"error", error}}); }

/// The first failure among the ranks' results, with its rank; empty: there is none.
std::string first_failure(const std::vector<std::string>& results) {
  for (std::size_t rank = 0; rank < results.size(); ++rank) {
    const auto json = nlohmann::json::parse(results[rank]);
    if (json.contains("error")) {
      return fmt::format("rank {}: {}", rank, json.at("error").get<std::string>());
    }
  }
  return "";
}

}  // namespace

CheckpointWriter::CheckpointWriter(fs::path checkpoints, std::unique_ptr<Communicator> communicator,
                                   CheckpointOptions options)
    : checkpoints_(std::move(checkpoints)),
      communicator_(std::move(communicator)),
      options_(options),
      exceptions_at_start_(std::uncaught_exceptions()) {}

CheckpointWriter::~CheckpointWriter() { close(); }

void CheckpointWriter::close() {
  // A rank that has failed never joins the save that the others may be waiting in.
  if (std::uncaught_exceptions() > exceptions_at_start_) communicator_->cancel();
  wait();
}

void CheckpointWriter::wait() {
  if (thread_.joinable()) thread_.join();
}

std::optional<SaveOutcome> CheckpointWriter::take_outcome() {
  const std::lock_guard lock(mutex_);
  if (outcomes_.empty()) return std::nullopt;
  SaveOutcome oldest = std::move(outcomes_.front());
  outcomes_.pop_front();
  return oldest;
}

void CheckpointWriter::set_outcome(SaveOutcome outcome) {
  const std::lock_guard lock(mutex_);
  outcomes_.push_back(std::move(outcome));
}

void CheckpointWriter::save(const CheckpointManifest& manifest,
                            std::span<const TensorSlice> slices) {
  const auto start = Clock::now();
  wait();
  for (const TensorSlice& slice : slices) {
    if (slice.values.dtype() != DType::fp32 || slice.values.device() != Device::cpu) {
      throw std::logic_error("checkpoint tensor " + slice.name + " is not fp32 on the host");
    }
  }
  if (options_.async) {
    saving_ = true;
    thread_ = std::thread([this, manifest, copies = copy_to_host(slices)] {
      set_outcome(write(manifest, copies));
      saving_ = false;
    });
  } else {
    set_outcome(write(manifest, slices));
  }
  blocked_seconds_ = seconds_since(start);
}

std::vector<TensorSlice> CheckpointWriter::copy_to_host(std::span<const TensorSlice> slices) {
  // Each begins on a cache line.
  const auto padded = [](const TensorSlice& slice) {
    return (slice.values.elements() + 15) / 16 * 16;
  };
  std::int64_t elements = 0;
  for (const TensorSlice& slice : slices) elements += padded(slice);
  if (host_copy_.elements() < elements) {
    host_copy_ = Tensor();  // freed first
    host_copy_ = Tensor::zeros({elements});
  }
  std::vector<TensorSlice> copies(slices.begin(), slices.end());
  std::vector<Piece> pieces;
  std::int64_t position = 0;
  for (TensorSlice& slice : copies) {
    const Tensor copy = host_copy_.rows(position, padded(slice)).view(slice.values.shape());
    position += padded(slice);
    const auto bytes = static_cast<std::int64_t>(slice.values.bytes());
    constexpr std::int64_t kPiece = std::int64_t{4} << 20;
    for (std::int64_t begin = 0; begin < bytes; begin += kPiece) {
      pieces.push_back({static_cast<std::byte*>(copy.raw()) + begin,
                        static_cast<const std::byte*>(slice.values.raw()) + begin,
                        std::min(kPiece, bytes - begin)});
    }
    slice.values = copy;
  }
  // One loop over all, so that the threads meet once.
#pragma omp parallel for schedule(dynamic) if (elements > (1 << 22))
  for (std::size_t i = 0; i < pieces.size(); ++i) copy_past_caches(pieces[i]);
  return copies;
}

std::vector<std::string> CheckpointWriter::gather(const std::string& text) {
  std::vector<std::string> texts;
  for (const auto& bytes : communicator_->all_gather(std::as_bytes(std::span(text)))) {
    texts.emplace_back(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return texts;
}

SaveOutcome CheckpointWriter::write(const CheckpointManifest& manifest,
                                    std::span<const TensorSlice> slices) {
  const Phase phase("writing a checkpoint");
  const auto start = Clock::now();
  const bool root = communicator_->rank() == 0;
  const fs::path temporary = temporary_folder(checkpoints_, manifest.step);
  SaveOutcome outcome;
  outcome.step = manifest.step;
  try {
    std::vector<TensorSlice> own;
    for (const TensorSlice& slice : slices) {
      if (!slice.values.empty()) own.push_back(slice);
    }
    const auto descriptions = gather(describe_slices(slices));
    // Every exchange is entered by every rank, whatever happened to it before.
    const auto prepared = gather(root ? prepare(manifest, descriptions) : "{}");
    outcome.error = first_failure(prepared);
    if (outcome.error.empty()) {
      std::string result = "{}";
      try {
        if (!own.empty()) {
          const std::string name = slice_file_name(communicator_->rank());
          const SliceFile file = write_slice_file(temporary / name, own);
          result = text_of({{"name", name},
                            {"bytes", file.bytes},
                            {"xxh3", file.xxh3},
                            {"offsets", file.offsets}});
        }
      } catch (const std::exception& error) {
        result = failure(error.what());
      }
      const auto results = gather(result);
      outcome.error = first_failure(results);
      if (outcome.error.empty()) {
        if (root) finish(manifest, descriptions, results, outcome);
        const auto last = nlohmann::json::parse(gather(text_of({{"error", outcome.error},
                                                                {"warning", outcome.warning},
                                                                {"bytes", outcome.bytes}}))
                                                    .front());
        outcome.error = last.at("error");
        if (outcome.saved()) outcome.path = checkpoints_ / checkpoint_name(manifest.step);
        outcome.warning = last.at("warning");
        outcome.bytes = last.at("bytes");
      }
    }
  } catch (const std::exception& error) {  // of the exchanges: another rank is gone
    if (outcome.path.empty()) outcome.error = error.what();
  }
  if (!outcome.error.empty()) {
    outcome.error =
        fmt::format("checkpoint {} was not written: {}",
                    (checkpoints_ / checkpoint_name(manifest.step)).string(), outcome.error);
    std::error_code ignored;
    if (root) fs::remove_all(temporary, ignored);
  }
  outcome.seconds = seconds_since(start);
  return outcome;
}

/// On rank 0: checks that the slices hold each tensor once, checks the space, makes the folder.
/// Returns its part of the outcome.
std::string CheckpointWriter::prepare(const CheckpointManifest& manifest,
                                      const std::vector<std::string>& descriptions) const {
  try {
    std::map<std::string, std::pair<Shape, std::vector<Box>>> tensors;
    std::int64_t needed = 0;
    for (const std::string& description : descriptions) {
      needed += kBytesOfRank;
      for (const SliceDescription& slice : parse_slices(description)) {
        auto& [shape, boxes] =
            tensors.try_emplace(slice.name, slice.global_shape, std::vector<Box>()).first->second;
        if (shape != slice.global_shape) {
          throw std::runtime_error(fmt::format("tensor {}: of shape {} on one rank, {} on another",
                                               slice.name, describe(shape),
                                               describe(slice.global_shape)));
        }
        boxes.push_back(slice.box);
        needed += kBytesOfDataset + 4 * elements_of(slice.box.extent);
      }
    }
    for (const auto& [name, tensor] : tensors) {
      const std::string problem = cover_problem(tensor.first, tensor.second);
      if (!problem.empty()) throw std::runtime_error(fmt::format("tensor {}: {}", name, problem));
    }
    prepare_checkpoint_folder(checkpoints_, manifest.step);
    require_free_space(checkpoints_, needed);
    return "{}";
  } catch (const std::exception& error) {
    return failure(error.what());
  }
}

/// On rank 0, when all files are written.
void CheckpointWriter::finish(const CheckpointManifest& manifest,
                              const std::vector<std::string>& descriptions,
                              const std::vector<std::string>& results, SaveOutcome& outcome) const {
  try {
    StoredCheckpoint stored;
    stored.manifest = manifest;
    for (std::size_t rank = 0; rank < results.size(); ++rank) {
      const auto result = nlohmann::json::parse(results[rank]);
      std::size_t written = 0;
      for (const SliceDescription& slice : parse_slices(descriptions[rank])) {
        StoredTensor& tensor = stored.tensors[slice.name];
        tensor.shape = slice.global_shape;
        if (elements_of(slice.box.extent) == 0) continue;
        tensor.boxes.push_back({result.at("name"), result.at("offsets").at(written++), slice.box});
      }
      if (written == 0) continue;
      stored.files[result.at("name").get<std::string>()] = {{"bytes", result.at("bytes")},
                                                            {"xxh3", result.at("xxh3")}};
      outcome.bytes += result.at("bytes").get<std::int64_t>();
    }
    const fs::path temporary = temporary_folder(checkpoints_, manifest.step);
    write_text_durably(temporary / "manifest.json", manifest_text(stored));
    sync_path(temporary);
    outcome.path = publish_checkpoint(checkpoints_, manifest.step);
  } catch (const NotSyncedError& error) {
    outcome.path = checkpoints_ / checkpoint_name(manifest.step);
    outcome.warning = fmt::format("{}; the older ones are kept", error.what());
    return;
  } catch (const std::exception& error) {
    outcome.error = fmt::format("rank 0: {}", error.what());
    return;
  }
  try {
    remove_old_checkpoints(checkpoints_, manifest.step, options_.keep, options_.permanent_every);
  } catch (const std::exception& error) {
    outcome.warning = fmt::format("old checkpoints were not removed: {}", error.what());
  }
}

}  // namespace scone

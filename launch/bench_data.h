#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launch/command.h"

namespace scone {

/// What every part of `scone bench data` is given.
struct BenchDataOptions {
  std::vector<std::string> data;  // token shards, or folders of them
  std::string text, tokenizer;    // to tokenize, and by what; empty: nothing is
  std::string memory = "1G";      // limit of a rank that counts
  std::vector<std::string> fgrams = {"1M", "30M"};
  int max_length = 5;
  std::int64_t min_count = 5;
  int rounds = 5;      // of each measurement, in turns; medians are printed
  std::string folder;  // for temporary files; empty: the system's
  // Other tokenizers: packages made by launch/tokenizer_peers.sh (empty: none), and what runs them.
  std::string peers, peers_script = "launch/tokenizer_peers.mjs";
};

/// Declares `data` below `scone bench`: speed of counting n-grams, of matching, ..
void add_bench_data(CLI::App& bench, Action& action);

// The parts, one a function: each prints its table on stdout (unless context.json) and returns it.

/// Counting n-grams: against a plain std::unordered_map counter, and growth from 10M to 100M
/// tokens.
nlohmann::json bench_counting(const BenchDataOptions& options, CommandContext& context);
/// Longest matches on one thread, with vocabularies of several sizes.
nlohmann::json bench_matching(const BenchDataOptions& options, CommandContext& context);

/// Batches from page cache: windows and whole batches of the first corpus, beside a flat file of
/// the same tokens that is read through mmap in the manner of llm.c.
nlohmann::json bench_reading(const BenchDataOptions& options, CommandContext& context);
/// Tokenizing on one thread, beside other libraries, and with the threads of this rank: the first
/// 50 MB of documents of the text, each library with its cache empty at first; says whether the ids
/// are the same. Throws InputError where a peer cannot run.
nlohmann::json bench_tokenizing(const BenchDataOptions& options, CommandContext& context);

// What parts share.

double median_of(std::vector<double> values);
void print_bench_line(const CommandContext& context, const std::string& line);

/// A new folder for a benchmark's files, removed with the object.
class BenchFolder {
 public:
  explicit BenchFolder(const std::string& parent);
  ~BenchFolder();
  BenchFolder(const BenchFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace scone

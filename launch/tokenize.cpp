#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "data/dataset_folder.h"
#include "data/document_encoder.h"
#include "data/size_suffix.h"
#include "data/text_source.h"
#include "data/token_shard.h"
#include "data/tokenizer.h"
#include "data/tokenizer_training.h"
#include "launch/command.h"
#include "parallel/error.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

constexpr int most_threads = 1024;

struct TokenizeArguments {
  std::vector<std::string> input;
  std::string output, tokenizer, train_tokenizer, shard_tokens = "100M", invalid_utf8 = "replace";
  double validation_fraction = 0.005;
  int threads = 0;
};

InvalidUtf8 invalid_utf8_policy(const std::string& name) {
  if (name == "keep") return InvalidUtf8::keep;
  return name == "error" ? InvalidUtf8::error : InvalidUtf8::replace;
}

/// Prints how far a pass over the text is: rewriting one line on a terminal, else at most one line
/// each ten seconds.
class ProgressLine {
 public:
  explicit ProgressLine(std::string task)
      : task_(std::move(task)), terminal_(::isatty(STDERR_FILENO) != 0) {}

  void update(const TextSource& source) {
    const double seconds = seconds_since(begin_);
    if (seconds - printed_ < (terminal_ ? 0.2 : 10.0)) return;
    printed_ = seconds;
    open_ = terminal_;
    const double share = source.progress();
    fmt::print(stderr, "{}{}: {:5.1f} %  {} documents  {:.1f} MB of text  {:.0f} s left{}",
               terminal_ ? "\r" : "", task_, 100 * share, source.counts().documents,
               static_cast<double>(source.counts().text_bytes) / 1e6,
               share > 0 ? seconds * (1 - share) / share : 0.0, terminal_ ? "   " : "\n");
    std::fflush(stderr);
  }
  ~ProgressLine() {
    if (open_) fmt::print(stderr, "\n");
  }

 private:
  std::string task_;
  bool terminal_;
  bool open_ = false;  // a line without its end stands on the terminal
  Clock::time_point begin_ = Clock::now();
  double printed_ = 0;
};

void check_arguments(const TokenizeArguments& arguments) {
  if (arguments.tokenizer.empty() == arguments.train_tokenizer.empty()) {
    throw InputError(fmt::format(
        "expected one of --tokenizer FILE and --train-tokenizer SIZE, found {}; give one of them",
        arguments.tokenizer.empty() ? "neither" : "both"));
  }
  if (arguments.threads < 0 || arguments.threads > most_threads) {
    throw InputError(fmt::format("--threads: expected 1..{}, or 0 for all processors, found {}",
                                 most_threads, arguments.threads));
  }
}

/// Trains on all documents of the input, into the dataset's tokenizer.model.
void train(const std::vector<std::filesystem::path>& input, const TokenizeArguments& arguments,
           int threads, const std::filesystem::path& model) {
  const std::int64_t size = parse_size(arguments.train_tokenizer);
  // A tokenizer learns from well-formed text only.
  const InvalidUtf8 policy = invalid_utf8_policy(arguments.invalid_utf8);
  TextSource source(input, policy == InvalidUtf8::keep ? InvalidUtf8::replace : policy);
  ProgressLine progress("reading for the tokenizer");
  train_tokenizer(
      [&](std::string& document) {
        progress.update(source);
        return source.next(document);
      },
      size, model, threads);
}

nlohmann::json side_json(const ShardTotals& totals) {
  return {{"documents", totals.documents},
          {"tokens", totals.tokens},
          {"text_bytes", totals.text_bytes},
          {"shards", totals.shards}};
}

double bytes_per_token(const ShardTotals& totals) {
  return totals.tokens == 0
             ? 0
             : static_cast<double>(totals.text_bytes) / static_cast<double>(totals.tokens);
}

void print_side(const char* name, const ShardTotals& totals) {
  fmt::print("{:<12} {:>12} {:>14} {:>14} {:>12.3f} {:>8}\n", name, totals.documents, totals.tokens,
             totals.text_bytes, bytes_per_token(totals), totals.shards);
}

int tokenize(const TokenizeArguments& arguments, CommandContext& context) {
  const auto begin = Clock::now();
  check_arguments(arguments);
  const int threads = arguments.threads > 0
                          ? arguments.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const std::vector<std::filesystem::path> input(arguments.input.begin(), arguments.input.end());
  const std::int64_t shard_tokens = parse_size(arguments.shard_tokens);
  if (shard_tokens < 1) {
    throw InputError("--shard-tokens: expected at least 1, found 0; give one such as 100M");
  }
  std::unique_ptr<TokenShardWriter> training, validation;
  ValidationSplit split(arguments.validation_fraction,
                        [&](ValidationSplit::Side side, const EncodedDocument& document) {
                          (side == ValidationSplit::Side::train ? training : validation)
                              ->add(document.tokens, document.text_bytes);
                        });
  TextSource source(input, invalid_utf8_policy(arguments.invalid_utf8));
  std::unique_ptr<Tokenizer> tokenizer;
  if (!arguments.tokenizer.empty()) tokenizer = load_tokenizer(arguments.tokenizer);

  DatasetFolder folder(arguments.output);
  if (tokenizer) {
    folder.copy_tokenizer(tokenizer->file());
  } else {
    train(input, arguments, threads, folder.tokenizer_model());
    tokenizer = load_tokenizer(folder.tokenizer_model());
  }
  const ShardTokenizer shard_tokenizer{tokenizer->fingerprint(), tokenizer->vocabulary_size(),
                                       tokenizer->end_of_document()};
  training = std::make_unique<TokenShardWriter>(folder.train(), shard_tokenizer, shard_tokens);
  validation =
      std::make_unique<TokenShardWriter>(folder.validation(), shard_tokenizer, shard_tokens);
  {
    ProgressLine progress("tokenize");
    encode_documents(
        *tokenizer, threads,
        [&](std::string& document) {
          progress.update(source);
          return source.next(document);
        },
        [&](EncodedDocument&& document) { split.add(std::move(document)); });
  }
  split.finish();
  const TextCounts& counts = source.counts();
  if (counts.documents == 0) {
    throw InputError(
        fmt::format("--input {}: expected text, found only empty documents ({}); give other files",
                    arguments.input.front(), counts.empty_documents));
  }
  training->finish();
  validation->finish();
  folder.publish();

  const ShardTotals all{training->totals().documents + validation->totals().documents,
                        training->totals().tokens + validation->totals().tokens,
                        training->totals().text_bytes + validation->totals().text_bytes,
                        training->totals().shards + validation->totals().shards};
  const double seconds = seconds_since(begin);
  if (arguments.validation_fraction > 0 && all.documents == 1) {
    fmt::print(
        stderr,
        "warning: the input is one document, so there is no validation set; give more files, "
        "or JSONL with one document a line\n");
  }
  if (!context.json) {
    fmt::print("{:<12} {:>12} {:>14} {:>14} {:>12} {:>8}\n", "", "documents", "tokens",
               "text bytes", "bytes/token", "shards");
    print_side("train", training->totals());
    print_side("validation", validation->totals());
    print_side("all", all);
    fmt::print(
        "{}, {} tokens, fingerprint {}; invalid UTF-8 sequences: {}; empty documents left out: {}\n"
        "{} in {:.1f} s\n",
        tokenizer->description(), tokenizer->vocabulary_size(), tokenizer->fingerprint(),
        counts.invalid_sequences, counts.empty_documents, arguments.output, seconds);
  }
  context.print_result({{"output", arguments.output},
                        {"tokenizer", tokenizer->description()},
                        {"tokenizer_fingerprint", tokenizer->fingerprint()},
                        {"vocabulary_size", tokenizer->vocabulary_size()},
                        {"end_of_document", tokenizer->end_of_document()},
                        {"files", source.files().size()},
                        {"documents", all.documents},
                        {"tokens", all.tokens},
                        {"text_bytes", all.text_bytes},
                        {"bytes_per_token", bytes_per_token(all)},
                        {"invalid_sequences", counts.invalid_sequences},
                        {"empty_documents", counts.empty_documents},
                        {"train", side_json(training->totals())},
                        {"validation", side_json(validation->totals())},
                        {"seconds", seconds}});
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<TokenizeArguments>();
  CLI::App* command = app.add_subcommand(
      "tokenize", "Text, JSONL (also .gz, .zst) -> token shards and their tokenizer");
  command
      ->add_option(
          "--input", arguments->input,
          "Files and folders. FILE.jsonl (.ndjson, .json): a document a line, in the field "
          "\"text\"; any other file is one document")
      ->required();
  command
      ->add_option(
          "--output", arguments->output,
          "Folder for train/*.h5, validation/*.h5 and tokenizer.*; those of an earlier run "
          "are replaced")
      ->required();
  command->add_option("--tokenizer", arguments->tokenizer,
                      "SentencePiece tokenizer.model, or tokenizer.json with byte-level BPE");
  command->add_option("--train-tokenizer", arguments->train_tokenizer,
                      "Train a SentencePiece BPE of this many tokens on the input, such as 16K");
  command
      ->add_option("--validation-fraction", arguments->validation_fraction,
                   "Share of the documents for validation, chosen by a hash of their text")
      ->capture_default_str();
  command
      ->add_option("--shard-tokens", arguments->shard_tokens,
                   "Tokens of a shard at most (one longer document is a shard by itself)")
      ->capture_default_str();
  command
      ->add_option("--invalid-utf8", arguments->invalid_utf8,
                   "Bytes that are not UTF-8: replace by U+FFFD, keep as byte tokens, or stop with "
                   "an error")
      ->check(CLI::IsMember({"replace", "keep", "error"}))
      ->capture_default_str();
  command->add_option("--threads", arguments->threads, "Threads that encode; 0: all processors")
      ->capture_default_str();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) {
      const int code = context.is_root() ? tokenize(*arguments, context) : 0;
      context.world.barrier();
      return code;
    };
  });
}

}  // namespace scone

#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/dataset_folder.h"
#include "data/document_pieces.h"
#include "data/document_spill.h"
#include "data/size_suffix.h"
#include "data/token_import.h"
#include "data/tokenizer.h"
#include "data/tokenizer_training.h"
#include "launch/command.h"
#include "parallel/agreed_errors.h"
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
  std::string from = "text";
  int token_bits = 16;
  std::int64_t separator = -2;  // as in TokenImportOptions
  double validation_fraction = 0.005;
  int threads = 0;
  bool is_import() const { return from != "text"; }
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

  /// share: of the input, 0..1.
  void update(double share, std::int64_t documents, std::int64_t text_bytes) {
    const double seconds = seconds_since(begin_);
    if (seconds - printed_ < (terminal_ ? 0.2 : 10.0)) return;
    printed_ = seconds;
    open_ = terminal_;
    fmt::print(stderr, "{}{}: {:5.1f} %  {} documents  {:.1f} MB of text  {:.0f} s left{}",
               terminal_ ? "\r" : "", task_, 100 * share, documents,
               static_cast<double>(text_bytes) / 1e6,
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

/// What ends a rank's work when another one has failed; never leaves write_together.
struct StoppedByAnother {};

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
  if (arguments.is_import() && arguments.tokenizer.empty()) {
    throw InputError(fmt::format(
        "--from {}: token files need the tokenizer that made them: give it with --tokenizer FILE",
        arguments.from));
  }
  if (arguments.from != "nanogpt" && arguments.token_bits != 16)
    throw InputError("--token-bits: only files of --from nanogpt do not say it themselves");
  if (!arguments.is_import() && arguments.separator != -2)
    throw InputError("--document-separator: of token files; give --from too");
  check_validation_fraction(arguments.validation_fraction);
}

/// Trains on all documents of the input, into the dataset's tokenizer.model.
void train(const std::vector<std::filesystem::path>& input, const TokenizeArguments& arguments,
           int threads, const std::filesystem::path& model) {
  const std::int64_t size = parse_size_option("--train-tokenizer", arguments.train_tokenizer);
  // A tokenizer learns from well-formed text only.
  const InvalidUtf8 policy = invalid_utf8_policy(arguments.invalid_utf8);
  TextSource source(input, policy == InvalidUtf8::keep ? InvalidUtf8::replace : policy);
  ProgressLine progress("reading for the tokenizer");
  train_tokenizer(
      [&](std::string& document) {
        progress.update(source.progress(), source.counts().documents, source.counts().text_bytes);
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

/// The input cut into pieces, and what it is cut from.
struct Input {
  std::unique_ptr<TextSource> text;  // null: token files
  std::unique_ptr<DocumentPieces> pieces;
  std::int64_t files = 0;
};

std::unique_ptr<DocumentPieces> open_token_files(const std::vector<std::filesystem::path>& input,
                                                 const TokenizeArguments& arguments,
                                                 const Tokenizer& tokenizer, Input& opened) {
  TokenImportOptions options;
  options.format = arguments.from == "llm.c"     ? TokenFormat::llm_c
                   : arguments.from == "nanogpt" ? TokenFormat::nanogpt
                                                 : TokenFormat::megatron;
  options.token_bits = arguments.token_bits;
  options.separator = arguments.separator;
  auto pieces = std::make_unique<TokenFilePieces>(input, options, tokenizer);
  opened.files = pieces->files();
  return pieces;
}

/// Encodes a rank's pieces into `sink`, with progress from rank 0.
TextCounts encode(const DocumentPieces& pieces, std::pair<std::int64_t, std::int64_t> own,
                  int threads, bool shows_progress,
                  const std::function<void(EncodedDocument&&)>& sink,
                  const std::function<void()>& after_piece) {
  std::int64_t total = 0, done = 0, documents = 0, text_bytes = 0;
  for (std::int64_t p = own.first; p < own.second; ++p) total += pieces.bytes(p);
  ProgressLine progress("tokenize");
  return encode_pieces(
      pieces, own.first, own.second, threads,
      [&](EncodedDocument&& document) {
        ++documents;
        text_bytes += document.text_bytes;
        sink(std::move(document));
      },
      [&](std::int64_t piece) {
        done += pieces.bytes(piece);
        if (shows_progress)
          progress.update(
              static_cast<double>(done) / static_cast<double>(std::max<std::int64_t>(1, total)),
              documents, text_bytes);
        after_piece();
      });
}

DocumentSpill::Sides write_alone(const DocumentPieces& pieces, const TokenizeArguments& arguments,
                                 std::int64_t shard_tokens, int threads,
                                 const ShardTokenizer& tokenizer, const DatasetFolder& folder,
                                 TextCounts& counts) {
  TokenShardWriter training(folder.train(), tokenizer, shard_tokens);
  TokenShardWriter validation(folder.validation(), tokenizer, shard_tokens);
  ValidationSplit split(arguments.validation_fraction,
                        [&](ValidationSplit::Side side, const EncodedDocument& document) {
                          (side == ValidationSplit::Side::train ? training : validation)
                              .add(document.tokens, document.text_bytes);
                        });
  counts = encode(
      pieces, {0, pieces.count()}, threads, true,
      [&](EncodedDocument&& document) { split.add(std::move(document)); }, [] {});
  split.finish();
  training.finish();
  validation.finish();
  return {training.totals(), validation.totals()};
}

/// Collective.
DocumentSpill::Sides write_together(const DocumentPieces& pieces,
                                    const TokenizeArguments& arguments, std::int64_t shard_tokens,
                                    int threads, const ShardTokenizer& tokenizer,
                                    const DatasetFolder& folder, TextCounts& counts,
                                    Communicator& world) {
  const auto own = pieces_of_rank(pieces, world.rank(), world.size());
  const std::filesystem::path failed = folder.spill() / "failed";
  std::unique_ptr<DocumentSpill> spill;
  run_agreed(world, [&] {
    try {
      spill = std::make_unique<DocumentSpill>(folder.spill(), tokenizer, world.rank());
      counts = encode(
          pieces, own, threads, world.rank() == 0,
          [&](EncodedDocument&& document) { spill->add(document); },
          [&] {
            // Another rank's error is what all will report; this one need not go on.
            if (std::filesystem::exists(failed)) throw StoppedByAnother();
          });
      spill->close();
    } catch (const StoppedByAnother&) {
    } catch (...) {
      std::ofstream(failed).put('x');
      throw;
    }
  });
  std::array<std::int64_t, 4> sums = {counts.documents, counts.text_bytes, counts.invalid_sequences,
                                      counts.empty_documents};
  world.all_reduce(std::span<std::int64_t>(sums), ReduceOp::sum);
  counts = {sums[0], sums[1], sums[2], sums[3]};
  return spill->write_shards(world, arguments.validation_fraction, shard_tokens, folder.train(),
                             folder.validation());
}

void print_summary(const TokenizeArguments& arguments, CommandContext& context,
                   const Tokenizer& tokenizer, const DocumentSpill::Sides& sides,
                   const TextCounts& counts, std::int64_t files, double seconds) {
  const ShardTotals all{sides.train.documents + sides.validation.documents,
                        sides.train.tokens + sides.validation.tokens,
                        sides.train.text_bytes + sides.validation.text_bytes,
                        sides.train.shards + sides.validation.shards};
  if (arguments.validation_fraction > 0 && all.documents == 1) {
    fmt::print(
        stderr,
        "warning: the input is one document, so there is no validation set; give more files, "
        "or JSONL with one document a line\n");
  }
  if (!context.json) {
    fmt::print("{:<12} {:>12} {:>14} {:>14} {:>12} {:>8}\n", "", "documents", "tokens",
               "text bytes", "bytes/token", "shards");
    print_side("train", sides.train);
    print_side("validation", sides.validation);
    print_side("all", all);
    fmt::print(
        "{}, {} tokens, fingerprint {}; invalid UTF-8 sequences: {}; empty documents left out: {}\n"
        "{} in {:.1f} s\n",
        tokenizer.description(), tokenizer.vocabulary_size(), tokenizer.fingerprint(),
        counts.invalid_sequences, counts.empty_documents, arguments.output, seconds);
  }
  context.print_result({{"output", arguments.output},
                        {"tokenizer", tokenizer.description()},
                        {"tokenizer_fingerprint", tokenizer.fingerprint()},
                        {"vocabulary_size", tokenizer.vocabulary_size()},
                        {"end_of_document", tokenizer.end_of_document()},
                        {"files", files},
                        {"documents", all.documents},
                        {"tokens", all.tokens},
                        {"text_bytes", all.text_bytes},
                        {"bytes_per_token", bytes_per_token(all)},
                        {"invalid_sequences", counts.invalid_sequences},
                        {"empty_documents", counts.empty_documents},
                        {"train", side_json(sides.train)},
                        {"validation", side_json(sides.validation)},
                        {"seconds", seconds}});
}

/// Collective over the world.
int tokenize(const TokenizeArguments& arguments, CommandContext& context) {
  const auto begin = Clock::now();
  Communicator& world = context.world;
  check_arguments(arguments);
  const int threads = arguments.threads > 0 ? arguments.threads : omp_get_max_threads();
  const std::vector<std::filesystem::path> input(arguments.input.begin(), arguments.input.end());
  const std::int64_t shard_tokens = parse_size_option("--shard-tokens", arguments.shard_tokens);
  if (shard_tokens < 1) {
    throw InputError("--shard-tokens: expected at least 1, found 0; give one such as 100M");
  }
  Input opened;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<DatasetFolder> folder;
  run_agreed(world, [&] {
    if (!arguments.is_import()) {
      opened.text =
          std::make_unique<TextSource>(input, invalid_utf8_policy(arguments.invalid_utf8));
      opened.files = static_cast<std::int64_t>(opened.text->files().size());
    }
    if (!arguments.tokenizer.empty()) tokenizer = load_tokenizer(arguments.tokenizer);
    if (arguments.is_import())
      opened.pieces = open_token_files(input, arguments, *tokenizer, opened);
  });
  run_agreed(world, [&] {
    if (!context.is_root()) return;
    folder = std::make_unique<DatasetFolder>(
        arguments.output, tokenizer ? tokenizer->file() : std::filesystem::path());
    if (tokenizer) {
      folder->copy_tokenizer(tokenizer->file());
    } else {
      train(input, arguments, threads, folder->tokenizer_model());
    }
  });
  run_agreed(world, [&] {
    if (!folder) folder = DatasetFolder::join(arguments.output);
    if (!tokenizer) tokenizer = load_tokenizer(folder->tokenizer_model());
    if (!opened.pieces) opened.pieces = std::make_unique<TextPieces>(*opened.text, *tokenizer);
  });
  const ShardTokenizer shard_tokenizer{tokenizer->fingerprint(), tokenizer->vocabulary_size(),
                                       tokenizer->end_of_document()};
  TextCounts counts;
  const DocumentSpill::Sides sides =
      world.size() == 1 ? write_alone(*opened.pieces, arguments, shard_tokens, threads,
                                      shard_tokenizer, *folder, counts)
                        : write_together(*opened.pieces, arguments, shard_tokens, threads,
                                         shard_tokenizer, *folder, counts, world);
  if (counts.documents == 0) {
    throw InputError(
        fmt::format("--input {}: expected text, found only empty documents ({}); give other files",
                    arguments.input.front(), counts.empty_documents));
  }
  run_agreed(world, [&] {
    if (context.is_root()) folder->publish();
  });
  if (context.is_root())
    print_summary(arguments, context, *tokenizer, sides, counts, opened.files,
                  seconds_since(begin));
  return 0;
}

}  // namespace

void add_tokenize(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<TokenizeArguments>();
  CLI::App* command = app.add_subcommand(
      "tokenize",
      "Text, JSONL (also .gz, .zst) or token files of other trainers -> token shards and their "
      "tokenizer. Alone or under mpirun, with the same bytes");
  command
      ->add_option(
          "--input", arguments->input,
          "Files and folders. FILE.jsonl (.ndjson, .json): a document a line, in the field "
          "\"text\"; any other file is one document. With --from: token files, or folders of them, "
          "in order; of Megatron the common beginning of .bin and .idx too")
      ->required();
  command
      ->add_option("--from", arguments->from,
                   "What the input is: text; llm.c (.bin with its header), nanogpt (.bin of bare "
                   "ids) or megatron (.bin and .idx), each with the --tokenizer that made them")
      ->check(CLI::IsMember({"text", "llm.c", "nanogpt", "megatron"}))
      ->capture_default_str();
  command
      ->add_option("--token-bits", arguments->token_bits,
                   "Width of the ids in files of --from nanogpt, which do not say it")
      ->check(CLI::IsMember({16, 32}))
      ->capture_default_str();
  command->add_option("--document-separator", arguments->separator,
                      "The id between documents in token files; -1: none, all of it is one "
                      "document. Default: the tokenizer's end of document");
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
  command
      ->add_option("--threads", arguments->threads,
                   "Threads of each rank that read and encode; 0: its share of the processors")
      ->capture_default_str();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return tokenize(*arguments, context); };
  });
}

}  // namespace scone

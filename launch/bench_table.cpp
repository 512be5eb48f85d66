#include "launch/bench_table.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/bundle.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/table_files.h"
#include "data/fgram_vocabulary.h"
#include "data/size_suffix.h"
#include "data/token_corpus.h"
#include "launch/bench_data.h"
#include "launch/bench_table_data.h"
#include "launch/option_checks.h"
#include "parallel/error.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

struct Arguments {
  std::string vocabulary, data, size = "1M", lookups = "200K", cold_lookups = "4K", folder = ".";
  std::string peers;
  std::vector<std::string> stores = {"lmdb", "rocksdb", "hash"};
  std::vector<std::int64_t> batches = {1, 16, 256};
  std::int64_t width = 768;
  int rounds = 5;
};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Drops the page cache, where this user may. Returns whether it did.
bool drop_page_cache() {
  ::sync();
  std::ofstream file("/proc/sys/vm/drop_caches");
  file << "3" << std::flush;
  return static_cast<bool>(file);
}

/// Longest matches of the text at random places.
NgramList draw_lookups(const FgramVocabulary& vocabulary, const TokenCorpus& corpus,
                       std::int64_t count) {
  constexpr std::size_t window = 64;
  std::mt19937_64 random(1);
  NgramList lookups;
  std::vector<std::int32_t> tokens(window), targets(window);
  std::vector<std::int64_t> ids(window);
  std::vector<std::uint8_t> lengths(window);
  if (corpus.tokens() <= static_cast<std::int64_t>(window) + 1)
    throw InputError("bench table: --data has too few tokens");
  const auto places = static_cast<std::uint64_t>(corpus.tokens()) - window - 1;
  while (static_cast<std::int64_t>(lookups.size()) < count) {
    corpus.read_window(static_cast<std::int64_t>(random() % places), tokens, targets);
    vocabulary.match(tokens, ids, lengths);
    const std::size_t at = window / 2 + random() % (window / 2);
    if (ids[at] >= 0)
      lookups.add(std::span<const std::int32_t>(tokens).subspan(at + 1 - lengths[at], lengths[at]));
  }
  return lookups;
}

/// The table under test: a bundle's folder without a model.
class BenchTable {
 public:
  BenchTable(const fs::path& folder, const FgramVocabulary& vocabulary, std::int64_t width)
      : folder_(folder),
        layout_(make_table_layout(RowType::bf16, width, vocabulary.size(), std::int64_t{32} << 30,
                                  vocabulary.fingerprint())) {
    const auto start = Clock::now();
    TableFiles::create(folder, layout_);
    write_rows();
    rows_seconds_ = seconds_since(start);
    const TableIndexHeader header{.rows = vocabulary.size(),
                                  .max_length = vocabulary.max_length(),
                                  .token_vocabulary_size = vocabulary.token_vocabulary_size(),
                                  .fgrams = vocabulary.fingerprint()};
    TableIndex::write(folder / kTableIndexFile, header, [&](std::int64_t id) {
      const std::int64_t prefix = vocabulary.prefix(id);
      return TableKey{prefix < 0 ? -1 - std::int64_t{vocabulary.first_token(id)} : prefix,
                      vocabulary.last_token(id), true};
    });
    seconds_ = seconds_since(start);
    write_text_durably(folder / "bundle.json",
                       nlohmann::json{{"format", kBundleFormat},
                                      {"format_version", kBundleVersion},
                                      {"fgrams",
                                       {{"size", vocabulary.size()},
                                        {"max_length", vocabulary.max_length()},
                                        {"fingerprint", vocabulary.fingerprint()}}},
                                      {"table", describe_table(layout_)}}
                           .dump());
  }
  const TableLayout& layout() const { return layout_; }
  double seconds() const { return seconds_; }
  double rows_seconds() const { return rows_seconds_; }
  std::int64_t bytes() const {
    return layout_.bytes() + static_cast<std::int64_t>(fs::file_size(folder_ / kTableIndexFile));
  }
  std::unique_ptr<FgramTable> open(TableAccess access) const {
    RowSourceOptions options;
    options.access = access;
    auto table = std::make_unique<FgramTable>(folder_, options);
    if (table->access() != access) throw InputError("bench table: " + table->fallback());
    return table;
  }

 private:
  void write_rows() const {
    const TableFiles files(folder_, layout_);
    const auto record = static_cast<std::size_t>(layout_.bytes_of_record());
    constexpr std::int64_t block = 8192;
    std::vector<std::byte> records(block * record);
    std::vector<std::int64_t> ids;
    for (std::int64_t begin = 0; begin < layout_.rows; begin += block) {
      ids.clear();
      for (std::int64_t id = begin; id < std::min(begin + block, layout_.rows); ++id) {
        fill_row(id, std::span(records).subspan(ids.size() * record, record));
        ids.push_back(id);
      }
      files.write(ids, std::span(records).first(ids.size() * record));
    }
    files.sync();
  }

  fs::path folder_;
  TableLayout layout_;
  double seconds_ = 0, rows_seconds_ = 0;
};

/// Seconds that as many bytes take written in order, with fsync, as dd does it.
double plain_write_seconds(const fs::path& path, std::int64_t rows, std::size_t record) {
  const auto start = Clock::now();
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  std::vector<std::byte> records(8192 * record);
  for (std::int64_t begin = 0; begin < rows; begin += 8192) {
    const auto count = static_cast<std::size_t>(std::min<std::int64_t>(8192, rows - begin));
    for (std::size_t i = 0; i < count; ++i)
      fill_row(begin + static_cast<std::int64_t>(i),
               std::span(records).subspan(i * record, record));
    std::span<const std::byte> left(records.data(), count * record);
    while (!left.empty()) {
      const ssize_t written = ::write(file, left.data(), left.size());
      if (written <= 0) throw std::runtime_error(path.string() + ": cannot be written");
      left = left.subspan(static_cast<std::size_t>(written));
    }
  }
  if (::fsync(file) != 0) throw std::runtime_error(path.string() + ": cannot be synced");
  ::close(file);
  const double seconds = seconds_since(start);
  fs::remove(path);
  return seconds;
}

/// Look-ups a second: keys in, rows out in the caller's buffer, a batch at a time. Every row is
/// checked, outside of the time.
double lookup_rate(const FgramTable& table, const NgramList& lookups,
                   std::span<const std::int64_t> expected, std::size_t batch, std::size_t count) {
  const auto record = static_cast<std::size_t>(table.layout().bytes_of_record());
  std::vector<std::byte> rows(batch * record);
  std::vector<std::int64_t> ids(batch), offsets(batch + 1);
  double seconds = 0;
  std::size_t done = 0;
  for (; done + batch <= count; done += batch) {
    const auto start = Clock::now();
    const std::int64_t first = lookups.offsets[done];
    for (std::size_t i = 0; i <= batch; ++i) offsets[i] = lookups.offsets[done + i] - first;
    table.index().find(
        std::span(lookups.tokens)
            .subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(offsets[batch])),
        offsets, ids);
    table.read(ids, rows);
    seconds += seconds_since(start);
    for (std::size_t i = 0; i < batch; ++i)
      if (!is_row_of(expected[done + i], rows.data() + i * record))
        throw std::runtime_error(fmt::format("bench table: look-up {} gave a wrong row", done + i));
  }
  return static_cast<double>(done) / seconds;
}

/// Runs the peers' program; the numbers on its last line.
std::vector<double> run_peer(const std::string& program, const std::string& arguments) {
  const std::string command = "'" + program + "' " + arguments;
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
  char line[256] = "";
  std::vector<double> numbers;
  if (!pipe || std::fgets(line, sizeof(line), pipe.get()) == nullptr)
    throw InputError(fmt::format("--peers: {} printed nothing", command));
  char* at = line;
  for (char* end = line;; at = end) {
    const double number = std::strtod(at, &end);
    if (end == at) break;
    numbers.push_back(number);
  }
  if (numbers.empty()) throw InputError(fmt::format("--peers: {} printed '{}'", command, line));
  return numbers;
}

struct Rates {
  std::map<std::int64_t, std::vector<double>> warm, cold;  // by batch; look-ups a second
};

void print_and_store(const CommandContext& context, const Arguments& arguments,
                     const std::vector<std::pair<std::string, Rates>>& all,
                     nlohmann::json& result) {
  std::string line = fmt::format("{:<12}", "look-ups/s");
  for (const char* state : {"warm", "cold"})
    for (const std::int64_t batch : arguments.batches)
      line += fmt::format(" {:>13}", fmt::format("{} {}", state, batch));
  print_bench_line(context, line);
  for (const auto& [name, rates] : all) {
    line = fmt::format("{:<12}", name);
    for (const auto* state : {&rates.warm, &rates.cold}) {
      for (const std::int64_t batch : arguments.batches) {
        const auto found = state->find(batch);
        const double rate = found == state->end() ? 0 : median_of(found->second);
        line += rate > 0 ? fmt::format(" {:>13.0f}", rate) : fmt::format(" {:>13}", "-");
        if (rate > 0)
          result["lookups"][name][state == &rates.warm ? "warm" : "cold"][std::to_string(batch)] =
              rate;
      }
    }
    print_bench_line(context, line);
  }
}

int run_bench_table(const Arguments& arguments, CommandContext& context) {
  if (context.world.size() > 1) throw InputError("bench table: runs on one rank");
  const FgramVocabulary vocabulary(arguments.vocabulary,
                                   parse_size_option("--size", arguments.size));
  const std::int64_t count = parse_size_option("--lookups", arguments.lookups);
  const auto cold_count = static_cast<std::size_t>(
      std::min(parse_size_option("--cold-lookups", arguments.cold_lookups), count));
  const NgramList lookups = draw_lookups(vocabulary, TokenCorpus({arguments.data}), count);
  std::vector<std::int64_t> expected;
  for (std::size_t i = 0; i < lookups.size(); ++i) {
    std::int64_t id = vocabulary.child(lookups[i][0], lookups[i][1]);
    for (const std::int32_t token : lookups[i].subspan(2)) id = vocabulary.child(id, token);
    expected.push_back(id);
  }
  const BenchFolder folder(arguments.folder);
  const std::int64_t row = row_bytes(RowType::bf16, arguments.width);
  const std::int64_t payload = row * vocabulary.size();
  require_free_space(folder.path(), payload * (arguments.peers.empty() ? 3 : 8));

  const BenchTable made(folder.path(), vocabulary, arguments.width);
  const auto record = static_cast<std::size_t>(made.layout().bytes_of_record());
  const double plain = plain_write_seconds(folder.path() / "plain", vocabulary.size(), record);
  nlohmann::json result = {{"fgrams", vocabulary.size()}, {"width", arguments.width}};
  print_bench_line(context, fmt::format("{} f-grams, rows of {} bytes (bf16), {} look-ups, medians "
                                        "of {}, one thread",
                                        vocabulary.size(), row, count, arguments.rounds));
  print_bench_line(context, fmt::format("{:<12} {:>10} {:>12} {:>14}", "store", "build s",
                                        "disk bytes", "over payload"));
  const auto built = [&](const std::string& name, double seconds, double bytes) {
    print_bench_line(context, fmt::format("{:<12} {:>10.2f} {:>12.0f} {:>14.4f}", name, seconds,
                                          bytes, bytes / static_cast<double>(payload)));
    result["build"][name] = {{"seconds", seconds}, {"bytes", bytes}};
  };
  built("scone", made.seconds(), static_cast<double>(made.bytes()));
  built("plain write", plain, static_cast<double>(record) * static_cast<double>(vocabulary.size()));

  std::vector<std::pair<std::string, Rates>> all;
  std::vector<std::unique_ptr<FgramTable>> tables;
  for (const TableAccess access : {TableAccess::ram, TableAccess::mmap, TableAccess::direct}) {
    all.emplace_back(name_of(access), Rates{});
    tables.push_back(made.open(access));
  }
  const double index_bytes = static_cast<double>(tables[0]->index().memory_bytes()) /
                             static_cast<double>(vocabulary.size());
  print_bench_line(context, fmt::format("index {:.2f} bytes an f-gram in RAM; rows alone at {:.2f} "
                                        "of a plain write's speed",
                                        index_bytes, plain / made.rows_seconds()));
  result["index_bytes_each"] = index_bytes;
  result["build_over_plain"] = plain / made.rows_seconds();
  std::string peer_arguments;
  if (!arguments.peers.empty()) {
    NgramList keys;
    for (std::int64_t id = 0; id < vocabulary.size(); ++id) keys.add(vocabulary.tokens(id));
    write_ngrams(folder.path() / "keys", keys);
    write_ngrams(folder.path() / "lookups", lookups);
    peer_arguments = fmt::format("'{}' {}", folder.path().string(), row);
    for (const std::string& store : arguments.stores) {
      const auto numbers =
          run_peer(arguments.peers, fmt::format("{} {} build", peer_arguments, store));
      built(store, numbers.at(0), numbers.at(1));
      all.emplace_back(store, Rates{});
    }
  }
  const auto own = [&](std::size_t i) { return i < tables.size(); };
  const auto peer_rate = [&](const std::string& name, const char* state, std::int64_t batch,
                             std::int64_t most) {
    return run_peer(arguments.peers,
                    fmt::format("{} {} {} {} {}", peer_arguments, name, state, batch, most))
        .at(0);
  };
  // All warm passes come first: what a cold one drops takes long to come back.
  for (int round = 0; round < arguments.rounds; ++round) {
    for (const std::int64_t batch : arguments.batches) {
      for (std::size_t i = 0; i < all.size(); ++i) {
        auto& [name, rates] = all[i];
        const std::size_t most = name == "direct" ? cold_count : static_cast<std::size_t>(count);
        if (own(i))
          lookup_rate(*tables[i], lookups, expected, static_cast<std::size_t>(batch), most);
        rates.warm[batch].push_back(own(i) ? lookup_rate(*tables[i], lookups, expected,
                                                         static_cast<std::size_t>(batch), most)
                                           : peer_rate(name, "warm", batch, count));
      }
    }
  }
  bool cold = true;
  for (int round = 0; round < arguments.rounds; ++round) {
    for (const std::int64_t batch : arguments.batches) {
      for (std::size_t i = 0; i < all.size(); ++i) {
        auto& [name, rates] = all[i];
        if (name == "ram") continue;  // it is read whole when it is opened
        // Opened anew: a mapping keeps its pages.
        if (own(i)) {
          tables[i].reset();
          tables[i] = made.open(name == "mmap" ? TableAccess::mmap : TableAccess::direct);
        }
        cold = cold && drop_page_cache();
        if (!cold) continue;
        rates.cold[batch].push_back(
            own(i) ? lookup_rate(*tables[i], lookups, expected, static_cast<std::size_t>(batch),
                                 cold_count)
                   : peer_rate(name, "cold", batch, static_cast<std::int64_t>(cold_count)));
      }
    }
  }
  print_and_store(context, arguments, all, result);
  if (!cold)
    print_bench_line(context, "cold: not measured, the page cache cannot be dropped by this user");
  context.print_result(result);
  return 0;
}

}  // namespace

void add_bench_table(CLI::App& bench, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = bench.add_subcommand(
      "table", "Look-ups, size and build time of an f-gram table, beside other stores");
  command->add_option("fgrams", arguments->vocabulary, "F-gram vocabulary")->required();
  command->add_option("--data", arguments->data, "Token shards whose matches are looked up")
      ->required();
  command->add_option("--size", arguments->size, "Its first S f-grams")->capture_default_str();
  command->add_option("--width", arguments->width, "Numbers of a row")
      ->check(CLI::Range(std::int64_t{4}, std::int64_t{1} << 16))
      ->capture_default_str();
  command->add_option("--lookups", arguments->lookups, "Of a warm pass")->capture_default_str();
  command->add_option("--cold-lookups", arguments->cold_lookups, "Of a cold pass, and of direct")
      ->capture_default_str();
  command->add_option("--batches", arguments->batches, "Look-ups at a time")
      ->check(at_least(1))
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--peers", arguments->peers,
                      "Program of the other stores (build the target scone_table_peers)");
  command->add_option("--stores", arguments->stores, "Of them")
      ->check(CLI::IsMember({"lmdb", "rocksdb", "hash"}))
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--folder", arguments->folder, "Where the tables are made")
      ->capture_default_str();
  command->add_option("--rounds", arguments->rounds, "Of each, in turns")
      ->check(at_least(1))
      ->capture_default_str();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_bench_table(*arguments, context); };
  });
}

}  // namespace scone

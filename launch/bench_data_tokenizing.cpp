#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#include "data/document_encoder.h"
#include "data/text_source.h"
#include "data/tokenizer.h"
#include "launch/bench_data.h"
#include "parallel/error.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;
namespace fs = std::filesystem;

/// Other libraries to tokenize with.
struct TokenizerPeers {
  fs::path packages;  // made by launch/tokenizer_peers.sh; empty: none
  fs::path script;    // launch/tokenizer_peers.mjs
};

constexpr std::int64_t most_bytes = 50'000'000;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

/// The first documents of a text, and the file that hands them to other programs.
struct Texts {
  std::vector<std::string> documents;
  std::int64_t bytes = 0;
  BenchFolder folder;
  fs::path file;

  Texts(const fs::path& path, const std::string& parent)
      : folder(parent), file(folder.path() / "documents.jsonl") {
    TextSource source({path}, InvalidUtf8::replace);
    for (std::string text; bytes < most_bytes && source.next(text);) {
      bytes += static_cast<std::int64_t>(text.size());
      documents.push_back(std::move(text));
    }
    std::ofstream stream(file);
    for (const std::string& text : documents)
      stream << nlohmann::json{{"text", text}}.dump() << '\n';
    stream.close();
    if (!stream) throw std::runtime_error(fmt::format("{}: cannot be written", file.string()));
  }
};

/// One pass of one way: what it took, and what tells that ids are the same.
struct Pass {
  double seconds = 0;
  std::int64_t tokens = 0, id_sum = 0;
};

/// A new tokenizer each time, so that its cache begins empty.
Pass encode_here(const Texts& texts, const fs::path& file) {
  const auto tokenizer = load_tokenizer(file);
  Pass pass;
  std::vector<std::int32_t> ids;
  for (const std::string& text : texts.documents) {
    ids.clear();
    const auto begin = Clock::now();
    tokenizer->encode(text, ids);
    pass.seconds += seconds_since(begin);
    pass.tokens += static_cast<std::int64_t>(ids.size());
    for (const std::int32_t id : ids) pass.id_sum += id;
  }
  return pass;
}

Pass encode_on_threads(const Texts& texts, const fs::path& file, int threads) {
  const auto tokenizer = load_tokenizer(file);
  Pass pass;
  std::size_t next = 0;
  const auto begin = Clock::now();
  encode_documents(
      *tokenizer, threads,
      [&](std::string& document) {
        if (next == texts.documents.size()) return false;
        document = texts.documents[next++];
        return true;
      },
      [&](EncodedDocument&& document) {
        if (tokenizer->end_of_document() >= 0) document.tokens.pop_back();
        pass.tokens += static_cast<std::int64_t>(document.tokens.size());
        for (const std::int32_t id : document.tokens) pass.id_sum += id;
      });
  pass.seconds = seconds_since(begin);
  return pass;
}

/// Throws InputError with the program's output where it fails.
Pass encode_with_peer(const Texts& texts, const fs::path& tokenizer, const TokenizerPeers& peers,
                      const std::string& peer) {
  const auto quoted = [](const fs::path& path) {
    std::string text = "'";
    for (const char c : path.string()) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    return text + "'";
  };
  const std::string command = fmt::format(
      "RAYON_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false node {} {} {} {} {} 2>&1",
      quoted(peers.script), quoted(peers.packages), quoted(texts.file), quoted(tokenizer), peer);
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> pipe(::popen(command.c_str(), "r"),
                                                             ::pclose);
  if (!pipe) throw std::runtime_error("cannot run node");
  std::string output;
  std::array<char, 4096> buffer;
  while (const std::size_t got = std::fread(buffer.data(), 1, buffer.size(), pipe.get()))
    output.append(buffer.data(), got);
  try {
    const auto json = nlohmann::json::parse(output);
    return {json.at("seconds"), json.at("tokens"), json.at("id_sum")};
  } catch (const nlohmann::json::exception&) {
    throw InputError(fmt::format(
        "--peers {}: {} did not run; launch/tokenizer_peers.sh makes that folder. It said:\n{}",
        peers.packages.string(), peer, output));
  }
}

}  // namespace

nlohmann::json bench_tokenizing(const BenchDataOptions& options, CommandContext& context) {
  const fs::path text = options.text, tokenizer = options.tokenizer;
  const TokenizerPeers peers{options.peers, options.peers_script};
  const int rounds = options.rounds;
  if (!context.is_root()) return {};
  const Texts texts(text, options.folder);
  struct Way {
    std::string key, name;
    std::function<Pass()> run;
    std::vector<double> rates;  // bytes/s
    Pass last;
  };
  const int threads = omp_get_max_threads();
  std::vector<Way> ways;
  ways.push_back(
      {"scone", "scone, 1 thread", [&] { return encode_here(texts, tokenizer); }, {}, {}});
  if (!peers.packages.empty()) {
    for (const std::string peer : {"tiktoken", "tokenizers"})
      ways.push_back({peer,
                      peer == "tiktoken" ? "tiktoken (npm)" : "HF tokenizers (npm)",
                      [&, peer] { return encode_with_peer(texts, tokenizer, peers, peer); },
                      {},
                      {}});
  }
  ways.push_back({"scone_threads",
                  fmt::format("scone, {} threads", threads),
                  [&] { return encode_on_threads(texts, tokenizer, threads); },
                  {},
                  {}});
  for (int round = 0; round < rounds; ++round) {
    for (Way& way : ways) {
      way.last = way.run();
      way.rates.push_back(static_cast<double>(texts.bytes) / way.last.seconds);
    }
  }
  nlohmann::json result = {{"text_bytes", texts.bytes}, {"documents", texts.documents.size()}};
  fmt::print("tokenizing {:.1f} MB in {} documents with {}\n",
             static_cast<double>(texts.bytes) / 1e6, texts.documents.size(),
             load_tokenizer(tokenizer)->description());
  fmt::print("{:<22} {:>8} {:>12} {:>10} {:>10}\n", "", "MB/s", "tokens", "ids", "scone is");
  for (const Way& way : ways) {
    const double rate = median_of(way.rates);
    const bool same =
        way.last.tokens == ways[0].last.tokens && way.last.id_sum == ways[0].last.id_sum;
    fmt::print("{:<22} {:>8.2f} {:>12} {:>10} {:>9.2f}x\n", way.name, rate / 1e6, way.last.tokens,
               same ? "the same" : "others", median_of(ways[0].rates) / rate);
    result[way.key] = {{"bytes_per_second", rate},
                       {"tokens", way.last.tokens},
                       {"same_ids", same},
                       {"scone_is_faster_by", median_of(ways[0].rates) / rate}};
  }
  if (peers.packages.empty())
    fmt::print("no --peers: other libraries were left out (launch/tokenizer_peers.sh)\n");
  return result;
}

}  // namespace scone

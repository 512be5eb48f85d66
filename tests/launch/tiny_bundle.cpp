// scone_tiny_bundle FOLDER DTYPE [SEED]: makes the part of a bundle that a table needs, and prints
// some token ids on one line, then what docs/examples/table_lookup and docs/read_bundle.py must
// print for them. With a SEED the bundle is larger and of random sizes, some of its ids may have no
// f-gram, and FOLDER/ngrams.txt holds an n-gram a line, f-grams and others: its id or -1, its
// tokens, ":" and its row. What is expected comes from a map of all f-grams.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "checkpoint/table/index_layout.h"
#include "checkpoint/table/tiny_table.h"

namespace {

using Ngram = std::vector<std::int32_t>;

struct TinyBundle {
  scone::test::TinyFgrams fgrams;
  scone::RowType type;
  std::int64_t width;
  std::map<Ngram, std::int64_t> ids;

  std::int64_t find(const Ngram& ngram) const {
    const auto found = ids.find(ngram);
    return found == ids.end() ? -1 : found->second;
  }
  /// As it is read from the table.
  std::vector<float> row(std::int64_t id) const {
    std::vector<float> row = scone::test::row_of(id, width);
    std::vector<std::byte> record(static_cast<std::size_t>(scone::record_bytes(type, width)));
    scone::encode_row(type, row, record.data());
    scone::decode_row(type, record.data(), row);
    return row;
  }
};

void print_matches(const TinyBundle& bundle, const Ngram& tokens) {
  for (const std::int32_t token : tokens) std::printf("%d ", token);
  std::printf("\n");
  for (std::ptrdiff_t i = 0; i < std::ssize(tokens); ++i) {
    std::int64_t best = -1;
    std::ptrdiff_t length = std::min<std::ptrdiff_t>(i + 1, bundle.fgrams.header.max_length);
    for (; length >= 2 && best < 0; --length)
      best = bundle.find(Ngram(tokens.begin() + i + 1 - length, tokens.begin() + i + 1));
    std::printf("%td: token %d: %td %lld", i, tokens[static_cast<std::size_t>(i)],
                best < 0 ? 0 : length + 1, static_cast<long long>(best));
    if (best >= 0) {
      const std::vector<float> row = bundle.row(best);
      for (std::size_t number = 0; number < std::min<std::size_t>(row.size(), 4); ++number)
        std::printf(" %.9g", static_cast<double>(row[number]));
    }
    std::printf("\n");
  }
}

/// F-grams, those that have a row but no key, f-grams changed at one token, cut or grown, and
/// noise.
std::vector<Ngram> some_ngrams(const TinyBundle& bundle, std::mt19937_64& random) {
  const auto below = [&](std::int64_t bound) {
    return std::uniform_int_distribution<std::int64_t>(0, bound - 1)(random);
  };
  const std::int64_t vocabulary = bundle.fgrams.header.token_vocabulary_size;
  const auto token = [&] { return static_cast<std::int32_t>(below(vocabulary + 2) - 1); };
  std::vector<Ngram> ngrams{{}, {0}};
  for (std::int64_t id = 0; id < bundle.fgrams.header.rows; ++id) {
    const Ngram key = bundle.fgrams.tokens(id);
    ngrams.push_back(key);
    ngrams.push_back(key);
    ngrams.back()[static_cast<std::size_t>(below(std::ssize(key)))] = token();
    ngrams.push_back(key);
    ngrams.back().push_back(token());
    ngrams.emplace_back(key.begin() + 1, key.end());
    ngrams.emplace_back(static_cast<std::size_t>(1 + below(6)));
    for (std::int32_t& any : ngrams.back()) any = token();
  }
  return ngrams;
}

void write_ngrams(const std::string& path, const TinyBundle& bundle,
                  const std::vector<Ngram>& ngrams) {
  std::ofstream out(path);
  out.precision(9);
  for (const Ngram& ngram : ngrams) {
    const std::int64_t id = bundle.find(ngram);
    out << id;
    for (const std::int32_t token : ngram) out << ' ' << token;
    out << " :";
    if (id >= 0)
      for (const float number : bundle.row(id)) out << ' ' << number;
    out << '\n';
  }
  if (!out.flush()) throw std::runtime_error(path + " cannot be written");
}

TinyBundle make_bundle(const std::string& folder, scone::RowType type, const char* seed) {
  TinyBundle bundle{scone::test::make_fgrams(40, 300, 4, 11), type, 6, {}};
  std::int64_t file_bytes = 10000;
  if (seed != nullptr) {
    const std::uint64_t number = std::strtoull(seed, nullptr, 10);
    constexpr std::int64_t kVocabularies[] = {3, 65536, 40, 1000, 65537};
    constexpr std::int64_t kWidths[] = {1, 17, 40, 2};
    bundle.fgrams = scone::test::make_fgrams(kVocabularies[number % 5], 1000, 6, number);
    if (number % 2 == 1) bundle.fgrams = scone::test::limit_length(bundle.fgrams, 4);
    bundle.width = kWidths[number % 4];
    file_bytes = scone::kTableDataOffset +
                 (bundle.fgrams.header.rows / 5 + 1) * scone::record_bytes(type, bundle.width);
  }
  scone::test::write_tiny_bundle(folder, bundle.fgrams, type, bundle.width, file_bytes);
  if (seed != nullptr) {  // children by their starts, by their degrees, and both
    const std::int64_t rows = bundle.fgrams.header.rows;
    bundle.fgrams.write(folder + "/table/index.bin",
                        std::strtoll(seed, nullptr, 10) % 3 * rows / 2);
  }
  for (std::int64_t id = 0; id < bundle.fgrams.header.rows; ++id)
    if (bundle.fgrams.keys[static_cast<std::size_t>(id)].used)
      bundle.ids[bundle.fgrams.tokens(id)] = id;
  return bundle;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 4) {
    std::fprintf(stderr, "usage: %s FOLDER DTYPE [SEED]\n", argv[0]);
    return 2;
  }
  const char* seed = argc == 4 ? argv[3] : nullptr;
  const TinyBundle bundle = make_bundle(argv[1], scone::row_type_of(argv[2]), seed);
  Ngram tokens{7, 40, -3};
  for (std::int64_t id = 0; id < bundle.fgrams.header.rows; id += 7)
    for (const std::int32_t token : bundle.fgrams.tokens(id)) tokens.push_back(token);
  print_matches(bundle, tokens);
  if (seed != nullptr) {
    std::mt19937_64 random(std::strtoull(seed, nullptr, 10));
    write_ngrams(std::string(argv[1]) + "/ngrams.txt", bundle, some_ngrams(bundle, random));
  }
  return 0;
}

// scone_tiny_bundle FOLDER DTYPE: makes the part of a bundle that a table needs, and prints some
// token ids on one line, then what docs/examples/table_lookup must print for them, found by search
// through all f-grams.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "checkpoint/table/tiny_table.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s FOLDER DTYPE\n", argv[0]);
    return 2;
  }
  constexpr std::int64_t width = 6;
  const scone::RowType type = scone::row_type_of(argv[2]);
  const scone::test::TinyFgrams fgrams = scone::test::make_fgrams(40, 300, 4, 11);
  scone::test::write_tiny_bundle(argv[1], fgrams, type, width, 10000);

  std::vector<std::int32_t> tokens{7, 40, -3};
  for (std::int64_t id = 0; id < fgrams.header.rows; id += 7)
    for (const std::int32_t token : fgrams.tokens(id)) tokens.push_back(token);
  for (const std::int32_t token : tokens) std::printf("%d ", token);
  std::printf("\n");
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::int64_t best = -1;
    std::size_t length = 0;
    for (std::int64_t id = 0; id < fgrams.header.rows; ++id) {
      const std::vector<std::int32_t> key = fgrams.tokens(id);
      if (key.size() <= length || key.size() > i + 1) continue;
      const auto end = tokens.begin() + static_cast<std::ptrdiff_t>(i + 1);
      if (!std::equal(key.begin(), key.end(), end - std::ssize(key))) continue;
      best = id;
      length = key.size();
    }
    std::printf("%zu: token %d: %zu %lld", i, tokens[i], length, static_cast<long long>(best));
    if (best >= 0) {
      std::vector<float> row = scone::test::row_of(best, width);
      std::vector<std::byte> record(static_cast<std::size_t>(scone::record_bytes(type, width)));
      scone::encode_row(type, row, record.data());
      scone::decode_row(type, record.data(), row);
      for (int number = 0; number < 4; ++number)
        std::printf(" %.9g", static_cast<double>(row[static_cast<std::size_t>(number)]));
    }
    std::printf("\n");
  }
  return 0;
}

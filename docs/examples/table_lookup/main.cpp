// table_lookup BUNDLE [ram|mmap|direct]: reads token ids from stdin, and prints for each the
// longest f-gram that ends there: its length, its id, and the first numbers of its row, which an
// engine takes as the input embedding of that position. "0 -1": none ends there, and the token's
// own embedding stands.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <span>
#include <vector>

#include "checkpoint/table/fgram_table.h"

namespace {

void print_rows(const scone::FgramTable& table, const std::vector<std::int32_t>& tokens) {
  std::vector<std::int64_t> ids(tokens.size());
  std::vector<std::uint8_t> lengths(tokens.size());
  table.index().match(tokens, ids, lengths);

  // One batch of look-ups for all positions that have a row.
  std::vector<std::int64_t> wanted;
  for (const std::int64_t id : ids)
    if (id >= 0) wanted.push_back(id);
  const auto width = static_cast<std::size_t>(table.width());
  std::vector<float> rows(wanted.size() * width);
  table.lookup(wanted, rows);

  std::span<const float> next = rows;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    std::printf("%zu: token %d: %d %lld", i, tokens[i], lengths[i], static_cast<long long>(ids[i]));
    if (ids[i] >= 0) {
      for (const float number : next.first(std::min<std::size_t>(width, 4)))
        std::printf(" %.9g", static_cast<double>(number));
      next = next.subspan(width);
    }
    std::printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2 || argc > 3) {
    std::fprintf(stderr, "usage: %s BUNDLE [ram|mmap|direct] < TOKEN_IDS\n", argv[0]);
    return 2;
  }
  try {
    scone::RowSourceOptions options;
    if (argc == 3) options.access = scone::table_access_of(argv[2]);
    const scone::FgramTable table(argv[1], options);
    if (!table.fallback().empty())
      std::fprintf(stderr, "warning: rows are mapped: %s\n", table.fallback().c_str());
    std::vector<std::int32_t> tokens;
    for (std::int32_t token = 0; std::cin >> token;) tokens.push_back(token);
    if (!std::cin.eof()) {
      std::fprintf(stderr, "stdin: expected token ids, found something else behind %zu of them\n",
                   tokens.size());
      return 2;
    }
    print_rows(table, tokens);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}

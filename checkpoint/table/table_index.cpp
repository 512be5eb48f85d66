#include "checkpoint/table/table_index.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <stdexcept>

#ifdef __BMI2__
#include <immintrin.h>
#endif

#include "checkpoint/table/index_layout.h"
#include "checkpoint/table/memory_region.h"
#include "checkpoint/table/raw_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

static_assert(std::endian::native == std::endian::little, "index files are little-endian");

constexpr std::size_t kBlock = 256;  // look-ups in flight
constexpr std::uint32_t kFar = 8;    // entries that are walked over rather than jumped
constexpr std::uint32_t kWalk = 24;
constexpr std::uint32_t kJumps = 4;
constexpr std::uint32_t kAbsent = 0xFFFFFFFFU;

/// Position of the set bit with `rank` set bits below it, of which the word has more.
unsigned select_bit(std::uint64_t word, unsigned rank) {
#ifdef __BMI2__
  return static_cast<unsigned>(std::countr_zero(_pdep_u64(std::uint64_t{1} << rank, word)));
#else
  for (; rank > 0; --rank) word &= word - 1;
  return static_cast<unsigned>(std::countr_zero(word));
#endif
}

}  // namespace

struct TableIndex::State {
  IndexLayout layout;
  MemoryRegion memory;  // the file
  const std::uint32_t *starts = nullptr, *directory = nullptr;
  const std::uint64_t* degrees = nullptr;
  const std::byte* packed = nullptr;
  std::uint32_t vocabulary = 0, explicit_prefixes = 0, head_entries = 0;
  unsigned token_bits = 1, id_bits = 1, entry_bits = 2;
  std::uint64_t entry_mask = 3, id_mask = 1;

  /// A child that is looked for.
  struct Search {
    std::uint32_t prefix;  // its number, tokens first
    std::uint32_t token;   // scattered
    std::uint32_t owner;   // for the caller
    std::uint32_t id;      // the result; kAbsent: none
    std::uint32_t begin, end, at;
    std::uint32_t children;
    std::uint32_t jumps;
  };
  struct Group {
    std::uint32_t begin, end;
  };

  std::uint64_t entry(std::uint32_t at) const {
    const std::uint64_t bit = std::uint64_t{at} * entry_bits;
    std::uint64_t word;
    std::memcpy(&word, packed + bit / 8, 8);
    return word >> (bit % 8) & entry_mask;
  }
  void prefetch_entry(std::uint32_t at) const {
    __builtin_prefetch(packed + std::uint64_t{at} * entry_bits / 8);
  }
  bool is_token(std::int32_t token) const { return static_cast<std::uint32_t>(token) < vocabulary; }
  std::uint32_t scattered(std::int32_t token) const {
    return scatter_token(static_cast<std::uint32_t>(token), token_bits);
  }

  void load(const std::filesystem::path& path);
  void check(const std::string& source) const;
  struct Seen;
  void check_group(std::int64_t prefix, Group group, Seen& seen, const std::string& source) const;
  template <class Take>
  void for_each_group(const Take& take) const;

  /// Entries of the children of a prefix beyond those with explicit starts. bit: where its block
  /// begins in the degrees.
  Group tail_group(std::uint32_t prefix, std::uint32_t bit) const {
    const std::uint32_t tail = prefix - explicit_prefixes;
    std::size_t word = bit / 64;
    std::uint64_t zeros = ~degrees[word] & ~std::uint64_t{0} << (bit % 64);
    std::uint64_t first = bit;
    if (unsigned before = tail % IndexLayout::kIndexBlock; before > 0) {
      --before;
      for (unsigned count; (count = static_cast<unsigned>(std::popcount(zeros))) <= before;) {
        before -= count;
        zeros = ~degrees[++word];
      }
      const unsigned last = select_bit(zeros, before);
      first = word * 64 + last + 1;
      zeros &= ~std::uint64_t{1} << last;  // those above it
    }
    while (zeros == 0) zeros = ~degrees[++word];
    const std::uint64_t close = word * 64 + static_cast<unsigned>(std::countr_zero(zeros));
    // Each of the ids before closed by a zero, which is no entry.
    const auto begin = static_cast<std::uint32_t>(head_entries + first - tail);
    return {begin, begin + static_cast<std::uint32_t>(close - first)};
  }

  /// False: it is further, and its entry on the way into the cache.
  bool step(Search& search) const {
    const std::uint64_t here = entry(search.at);
    const auto token = static_cast<std::uint32_t>(here >> id_bits);
    if (token == search.token) {
      search.id = static_cast<std::uint32_t>(here & id_mask);
      return true;
    }
    const bool up = token < search.token;
    (up ? search.begin : search.end) = up ? search.at + 1 : search.at;
    if (search.begin >= search.end) return true;
    const std::uint32_t distance = up ? search.token - token : token - search.token;
    const auto jump =
        static_cast<std::uint32_t>(std::uint64_t{distance} * search.children >> token_bits);
    if (search.jumps >= kJumps && search.end - search.begin > kWalk) {
      search.at = search.begin + (search.end - search.begin) / 2;
    } else if (search.jumps < kJumps && jump > kFar) {
      ++search.jumps;
      // One past the jump: no nearer than the entry before it, which is known.
      search.at = up ? std::min(search.begin - 1 + jump, search.end - 1)
                     : (search.end - search.begin > jump ? search.end - jump : search.begin);
    } else {
      return walk(search, up);
    }
    prefetch_entry(search.at);
    return false;
  }
  bool walk(Search& search, bool up) const {
    for (std::uint32_t steps = 0; steps < kWalk; ++steps) {
      const std::uint64_t here = entry(up ? search.begin : search.end - 1);
      const auto token = static_cast<std::uint32_t>(here >> id_bits);
      if (token == search.token) search.id = static_cast<std::uint32_t>(here & id_mask);
      if (up ? token >= search.token : token <= search.token) return true;
      up ? ++search.begin : --search.end;
      if (search.begin == search.end) return true;
    }
    search.jumps = kJumps;  // not as uniform as expected: halve what is left
    search.at = search.begin + (search.end - search.begin) / 2;
    prefetch_entry(search.at);
    return false;
  }

  /// The ids of all, at most kBlock; their cache misses overlap.
  void run(std::span<Search> searches) const {
    for (const Search& search : searches) {
      __builtin_prefetch(
          search.prefix < explicit_prefixes
              ? &starts[search.prefix]
              : &directory[(search.prefix - explicit_prefixes) / IndexLayout::kIndexBlock]);
    }
    for (Search& search : searches) {
      search.id = kAbsent;
      search.jumps = 0;
      if (search.prefix < explicit_prefixes) {
        search.begin = starts[search.prefix];
        search.end = starts[search.prefix + 1];
      } else {
        search.begin = directory[(search.prefix - explicit_prefixes) / IndexLayout::kIndexBlock];
        __builtin_prefetch(&degrees[search.begin / 64]);
      }
    }
    std::array<std::uint16_t, kBlock> open;
    std::size_t count = 0;
    for (std::size_t i = 0; i < searches.size(); ++i) {
      Search& search = searches[i];
      if (search.prefix >= explicit_prefixes) {
        const Group group = tail_group(search.prefix, search.begin);
        search.begin = group.begin;
        search.end = group.end;
      }
      search.children = search.end - search.begin;
      if (search.children == 0) continue;
      search.at = search.begin + static_cast<std::uint32_t>(
                                     std::uint64_t{search.token} * search.children >> token_bits);
      prefetch_entry(search.at);
      open[count++] = static_cast<std::uint16_t>(i);
    }
    while (count > 0) {
      std::size_t kept = 0;
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint16_t which = open[i];
        if (!step(searches[which])) open[kept++] = which;
      }
      count = kept;
    }
  }
};

void TableIndex::State::load(const std::filesystem::path& path) {
  const RawFile file(path, O_RDONLY);
  const std::int64_t bytes = file.bytes();
  const auto cut = [&](std::int64_t expected) {
    return InputError(path.string() + ": expected " + std::to_string(expected) + " bytes, found " +
                      std::to_string(bytes) + (bytes < expected ? " (cut short)" : "") +
                      "; copy the bundle again, or bake it");
  };
  if (bytes < kIndexPageBytes) throw cut(kIndexPageBytes);
  std::string page(static_cast<std::size_t>(kIndexPageBytes), '\0');
  file.read(0, std::as_writable_bytes(std::span(page)));
  layout = parse_index_page(page, path.string());
  if (bytes != layout.file_bytes()) throw cut(layout.file_bytes());
  memory = MemoryRegion(static_cast<std::size_t>(bytes), path.string());
  file.read(0, memory.span());

  const std::byte* data = memory.data();
  starts = reinterpret_cast<const std::uint32_t*>(data + layout.starts().offset);
  directory = reinterpret_cast<const std::uint32_t*>(data + layout.directory().offset);
  packed = data + layout.packed().offset;
  degrees = reinterpret_cast<const std::uint64_t*>(data + layout.degrees().offset);
  vocabulary = static_cast<std::uint32_t>(layout.header.token_vocabulary_size);
  explicit_prefixes = static_cast<std::uint32_t>(layout.explicit_prefixes());
  head_entries = static_cast<std::uint32_t>(layout.head_entries);
  token_bits = layout.token_bits();
  id_bits = layout.id_bits();
  entry_bits = layout.entry_bits();
  entry_mask = (std::uint64_t{1} << entry_bits) - 1;
  id_mask = (std::uint64_t{1} << id_bits) - 1;
  check(path.string());
}

/// Calls take(number of the prefix, its children's entries) for each prefix in their order. Needs
/// valid starts and degrees.
template <class Take>
void TableIndex::State::for_each_group(const Take& take) const {
  for (std::uint32_t prefix = 0; prefix < explicit_prefixes; ++prefix)
    take(prefix, Group{starts[prefix], starts[prefix + 1]});
  std::int64_t bit = 0;
  std::uint32_t at = head_entries;
  for (std::int64_t tail = 0; tail < layout.tail_ids(); ++tail, ++bit) {
    const std::uint32_t begin = at;
    for (; (degrees[bit / 64] >> (bit % 64) & 1) != 0; ++bit) ++at;
    take(explicit_prefixes + tail, Group{begin, at});
  }
}

/// What entries are checked by.
struct TableIndex::State::Seen {
  std::vector<bool> is_scattered_token, is_used_id;
};

void TableIndex::State::check_group(std::int64_t prefix, Group group, Seen& seen,
                                    const std::string& source) const {
  std::int64_t before = -1;
  for (std::uint32_t at = group.begin; at < group.end; ++at) {
    const std::uint64_t here = entry(at);
    const std::uint64_t token = here >> id_bits, id = here & id_mask;
    if (static_cast<std::int64_t>(token) <= before || !seen.is_scattered_token[token] ||
        static_cast<std::int64_t>(id) >= layout.header.rows ||
        static_cast<std::int64_t>(id) <= prefix - std::int64_t{vocabulary} || seen.is_used_id[id]) {
      throw InputError(source + ": entry " + std::to_string(at) + " of prefix " +
                       std::to_string(prefix) +
                       ": out of order or range, or an id of two keys; the file is damaged: copy "
                       "the bundle again, or bake it");
    }
    seen.is_used_id[id] = true;
    before = static_cast<std::int64_t>(token);
  }
}

/// Everything that a look-up relies on to stay in bounds.
void TableIndex::State::check(const std::string& source) const {
  const auto fail = [&](const std::string& what) {
    throw InputError(source + ": " + what +
                     "; the file is damaged: copy the bundle again, or bake it");
  };
  for (std::uint32_t prefix = 0; prefix < explicit_prefixes; ++prefix) {
    if (starts[prefix] > starts[prefix + 1])
      fail("the children of prefix " + std::to_string(prefix) + " end before they begin");
  }
  if (starts[0] != 0 || starts[explicit_prefixes] != head_entries)
    fail("the starts do not cover the first " + std::to_string(head_entries) + " entries");

  // As many zeros as ids, the last at the end: no search for an id's leaves the section.
  const std::int64_t bits = layout.degree_bits();
  std::int64_t zeros = bits;
  for (std::int64_t word = 0; word * 64 < bits; ++word) {
    const std::int64_t rest = bits - word * 64;
    const std::uint64_t inside = rest < 64 ? (std::uint64_t{1} << rest) - 1 : ~std::uint64_t{0};
    zeros -= std::popcount(degrees[word] & inside);
  }
  const bool open = bits > 0 && (degrees[(bits - 1) / 64] >> ((bits - 1) % 64) & 1) != 0;
  if (zeros != layout.tail_ids() || open) {
    fail("expected the degrees of " + std::to_string(layout.tail_ids()) + " ids, found " +
         std::to_string(zeros) + (open ? " and an open one" : ""));
  }

  Seen seen{std::vector<bool>(std::size_t{1} << token_bits),
            std::vector<bool>(static_cast<std::size_t>(layout.header.rows))};
  for (std::uint32_t token = 0; token < vocabulary; ++token)
    seen.is_scattered_token[scatter_token(token, token_bits)] = true;
  for_each_group([&](std::int64_t prefix, Group group) {
    const std::int64_t tail = prefix - explicit_prefixes;
    if (tail >= 0 && tail % IndexLayout::kIndexBlock == 0 &&
        directory[tail / IndexLayout::kIndexBlock] != group.begin - head_entries + tail)
      fail("number " + std::to_string(tail / IndexLayout::kIndexBlock) +
           " of the directory is wrong");
    check_group(prefix, group, seen, source);
  });
}

TableIndex::TableIndex(const std::filesystem::path& path) : state_(std::make_unique<State>()) {
  state_->load(path);
}
TableIndex::~TableIndex() = default;
TableIndex::TableIndex(TableIndex&&) noexcept = default;

const TableIndexHeader& TableIndex::header() const { return state_->layout.header; }
std::int64_t TableIndex::memory_bytes() const {
  return static_cast<std::int64_t>(state_->memory.size());
}

std::int64_t TableIndex::find(std::span<const std::int32_t> ngram) const {
  const std::int64_t offsets[] = {0, static_cast<std::int64_t>(ngram.size())};
  std::int64_t id = -1;
  find(ngram, offsets, {&id, 1});
  return id;
}

void TableIndex::find(std::span<const std::int32_t> tokens, std::span<const std::int64_t> offsets,
                      std::span<std::int64_t> ids) const {
  const State& state = *state_;
  if (offsets.size() != ids.size() + 1 || offsets.front() < 0 ||
      offsets.back() > static_cast<std::int64_t>(tokens.size()) ||
      !std::is_sorted(offsets.begin(), offsets.end())) {
    throw std::invalid_argument("TableIndex::find: expected " + std::to_string(ids.size() + 1) +
                                " ascending offsets of at most " + std::to_string(tokens.size()) +
                                ", found " + std::to_string(offsets.size()));
  }
  State::Search searches[kBlock];
  for (std::size_t begin = 0; begin < ids.size(); begin += kBlock) {
    std::size_t count = 0;
    const std::size_t end = std::min(begin + kBlock, ids.size());
    for (std::size_t i = begin; i < end; ++i) {
      const auto ngram = tokens.subspan(static_cast<std::size_t>(offsets[i]),
                                        static_cast<std::size_t>(offsets[i + 1] - offsets[i]));
      ids[i] = -1;
      if (ngram.size() < 2 || !state.is_token(ngram[0]) || !state.is_token(ngram[1])) continue;
      State::Search& search = searches[count++];
      search.prefix = static_cast<std::uint32_t>(ngram[0]);
      search.token = state.scattered(ngram[1]);
      search.owner = static_cast<std::uint32_t>(i - begin);
    }
    for (std::int64_t length = 2; count > 0; ++length) {
      state.run({searches, count});
      std::size_t kept = 0;
      for (std::size_t i = 0; i < count; ++i) {
        if (searches[i].id == kAbsent) continue;
        const std::uint32_t owner = searches[i].owner, id = searches[i].id;
        const std::int64_t next = offsets[begin + owner] + length;
        if (next == offsets[begin + owner + 1]) {
          ids[begin + owner] = id;
        } else if (const std::int32_t token = tokens[static_cast<std::size_t>(next)];
                   state.is_token(token)) {
          searches[kept].prefix = state.vocabulary + id;
          searches[kept].token = state.scattered(token);
          searches[kept++].owner = owner;
        }
      }
      count = kept;
    }
  }
}

void TableIndex::match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids,
                       std::span<std::uint8_t> lengths) const {
  const State& state = *state_;
  if (ids.size() != tokens.size() || (!lengths.empty() && lengths.size() != tokens.size())) {
    throw std::invalid_argument("TableIndex::match: tokens, ids and lengths differ in size");
  }
  std::fill(ids.begin(), ids.end(), -1);
  std::fill(lengths.begin(), lengths.end(), std::uint8_t{0});
  const auto longest = static_cast<std::size_t>(header().max_length);
  State::Search searches[kBlock];
  // The starts of a block grow together, so that their cache misses overlap. Of two matches that
  // end together the longer has the smaller start. Lengths of those found, by their ends; an
  // earlier block may have written the first.
  std::uint8_t length_of[kBlock + kLongestIndexed] = {};
  for (std::size_t begin = 0; begin + 1 < tokens.size(); begin += kBlock) {
    if (begin > 0) {
      std::copy(length_of + kBlock, length_of + kBlock + longest, length_of);
      std::fill(length_of + longest, length_of + kBlock + longest, std::uint8_t{0});
    }
    const std::int32_t* here = tokens.data() + begin;
    const std::size_t rest = tokens.size() - begin;
    std::size_t count = 0;
    for (std::size_t i = 0; i < std::min(kBlock, rest - 1); ++i) {
      if (!state.is_token(here[i]) || !state.is_token(here[i + 1])) continue;
      searches[count].prefix = static_cast<std::uint32_t>(here[i]);
      searches[count].token = state.scattered(here[i + 1]);
      searches[count++].owner = static_cast<std::uint32_t>(i);
    }
    for (std::size_t length = 2; count > 0; ++length) {
      state.run({searches, count});
      std::size_t kept = 0;
      for (std::size_t i = 0; i < count; ++i) {
        if (searches[i].id == kAbsent) continue;
        const std::uint32_t owner = searches[i].owner, id = searches[i].id;
        const std::size_t end = owner + length;  // behind the f-gram
        if (length_of[end - 1] < length) {
          length_of[end - 1] = static_cast<std::uint8_t>(length);
          ids[begin + end - 1] = id;
          if (!lengths.empty()) lengths[begin + end - 1] = static_cast<std::uint8_t>(length);
        }
        if (length >= longest || end == rest || !state.is_token(here[end])) continue;
        searches[kept].prefix = state.vocabulary + id;
        searches[kept].token = state.scattered(here[end]);
        searches[kept++].owner = owner;
      }
      count = kept;
    }
  }
}

std::vector<TableKey> TableIndex::keys() const {
  const State& state = *state_;
  std::vector<std::int32_t> token_of(std::size_t{1} << state.token_bits);
  for (std::uint32_t token = 0; token < state.vocabulary; ++token)
    token_of[scatter_token(token, state.token_bits)] = static_cast<std::int32_t>(token);
  std::vector<TableKey> keys(static_cast<std::size_t>(header().rows), {0, 0, false});
  state.for_each_group([&](std::int64_t prefix, State::Group group) {
    for (std::uint32_t at = group.begin; at < group.end; ++at) {
      const std::uint64_t here = state.entry(at);
      const std::int64_t id = prefix - std::int64_t{state.vocabulary};
      keys[here & state.id_mask] = {id < 0 ? -1 - prefix : id, token_of[here >> state.id_bits],
                                    true};
    }
  });
  return keys;
}

}  // namespace scone

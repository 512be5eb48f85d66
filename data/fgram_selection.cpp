#include "data/fgram_selection.h"

#include <algorithm>
#include <functional>

#include "parallel/agreed_errors.h"

namespace scone {
namespace {

constexpr int digit_bits = 16;
constexpr std::size_t digits = std::size_t{1} << digit_bits;

/// Calls visit(record) for this rank's records of a level.
template <int Words, class Visit>
void each_record(const NgramLevelFile& level, const Visit& visit) {
  using Record = NgramRecord<Words>;
  read_level(level, sizeof(Record), [&](std::span<const std::byte> bytes) {
    const auto* records = reinterpret_cast<const Record*>(bytes.data());
    for (std::size_t i = 0; i < bytes.size() / sizeof(Record); ++i) visit(records[i]);
  });
}

/// Counts what `tally` puts into `bins` of them, over all ranks.
std::vector<std::int64_t> histogram(Communicator& communicator, std::size_t bins,
                                    const std::function<void(std::vector<std::int64_t>&)>& tally) {
  std::vector<std::int64_t> counts(bins, 0);
  run_agreed(communicator, [&] { tally(counts); });
  communicator.all_reduce(std::span(counts), ReduceOp::sum);
  return counts;
}

/// The bin of the n-gram number `wanted` (from 1) in the order of the bins; `wanted` then counts
/// within the bin.
std::size_t bin_of(const std::vector<std::int64_t>& counts, bool descending, std::int64_t& wanted) {
  for (std::size_t i = 0; i < counts.size(); ++i) {
    const std::size_t bin = descending ? counts.size() - 1 - i : i;
    if (wanted <= counts[bin]) return bin;
    wanted -= counts[bin];
  }
  throw std::logic_error("select_fgrams: fewer n-grams than were counted");
}

std::uint64_t digit_of(std::uint64_t number, int digit) {
  return number >> static_cast<unsigned>(digit_bits * digit) & (digits - 1);
}
std::uint64_t above_digit(std::uint64_t number, int digit) {
  return digit == 3 ? 0 : number >> static_cast<unsigned>(digit_bits * (digit + 1));
}
/// Digit of a key of four words, the lowest is 0.
std::uint64_t digit_of(const NgramKey<4>& key, int digit) {
  return digit_of(key.words[static_cast<std::size_t>(3 - digit / 4)], digit % 4);
}

}  // namespace

FgramSelection select_fgrams(Communicator& communicator, const std::vector<NgramLevelFile>& levels,
                             int bits, std::int64_t size) {
  FgramSelection selection;
  std::int64_t total = 0;
  for (const NgramLevelFile& level : levels) total += level.total;
  selection.size = std::min(size, total);
  std::int64_t wanted = selection.size;

  const auto each = [&](const NgramLevelFile& level, const auto& visit) {
    with_key_words(level.length, bits, [&]<int Words>() { each_record<Words>(level, visit); });
  };
  // The count of the last f-gram, from its highest digit to its lowest.
  for (int digit = 3; digit >= 0; --digit) {
    const auto counts = histogram(communicator, digits, [&](std::vector<std::int64_t>& bins) {
      for (const NgramLevelFile& level : levels) {
        each(level, [&](const auto& record) {
          if (above_digit(record.count, digit) == above_digit(selection.cutoff_count, digit))
            ++bins[digit_of(record.count, digit)];
        });
      }
    });
    selection.cutoff_count |= static_cast<std::uint64_t>(bin_of(counts, true, wanted))
                              << static_cast<unsigned>(digit_bits * digit);
  }
  // Of those with that count, the length,
  const auto by_level =
      histogram(communicator, levels.size(), [&](std::vector<std::int64_t>& bins) {
        for (std::size_t i = 0; i < levels.size(); ++i) {
          each(levels[i],
               [&](const auto& record) { bins[i] += record.count == selection.cutoff_count; });
        }
      });
  const NgramLevelFile& level = levels[bin_of(by_level, false, wanted)];
  selection.cutoff_length = level.length;
  // and of those of that length the tokens.
  const int key_digits = (level.length * bits + digit_bits - 1) / digit_bits;
  for (int digit = key_digits - 1; digit >= 0; --digit) {
    const auto counts = histogram(communicator, digits, [&](std::vector<std::int64_t>& bins) {
      each(level, [&](const auto& record) {
        if (record.count != selection.cutoff_count) return;
        const NgramKey<4> key = FgramSelection::widened(record.key);
        for (int d = digit + 1; d < key_digits; ++d)
          if (digit_of(key, d) != digit_of(selection.cutoff_key, d)) return;
        ++bins[digit_of(key, digit)];
      });
    });
    selection.cutoff_key.words[static_cast<std::size_t>(3 - digit / 4)] |=
        static_cast<std::uint64_t>(bin_of(counts, false, wanted))
        << static_cast<unsigned>(digit_bits * (digit % 4));
  }
  return selection;
}

}  // namespace scone

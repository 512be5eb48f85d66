#include "data/megatron_index.h"

#include <fmt/format.h>

#include <cstring>
#include <optional>
#include <string_view>

#include "parallel/error.h"

namespace scone {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view magic = "MMIDIDX\0\0"sv;
constexpr std::int64_t header_bytes = 9 + 8 + 1 + 8 + 8;
// Of code, version and counts in the header.
constexpr std::int64_t version_at = 9, code_at = 17, sequences_at = 18, marks_at = 26;

std::optional<TokenWidth> width_of_code(int code) {
  switch (code) {
    case 1:
      return TokenWidth::uint8;
    case 3:
      return TokenWidth::int16;
    case 4:
      return TokenWidth::int32;
    case 5:
      return TokenWidth::int64;
    case 8:
      return TokenWidth::uint16;
    default:
      return std::nullopt;
  }
}

template <class Value>
Value load(const std::byte* from) {
  Value value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

MegatronIndex::MegatronIndex(const std::filesystem::path& path, const std::filesystem::path& bin,
                             std::int64_t bin_bytes)
    : file_(path) {
  read_header(path);
  check_sequences(path, bin, bin_bytes);
  check_marks(path);
  bin_tokens_ = bin_bytes / bytes_of(width_);
}

void MegatronIndex::read_header(const std::filesystem::path& path) {
  const auto damaged = [&](const std::string& what) {
    throw InputError(
        fmt::format("{}: {}; expected an index of Megatron-LM, version 1: make it again with its "
                    "preprocess_data.py",
                    path.string(), what));
  };
  if (file_.bytes() < header_bytes)
    damaged(fmt::format("{} bytes are fewer than its header's {}", file_.bytes(), header_bytes));
  if (std::memcmp(file_.data(), magic.data(), magic.size()) != 0)
    damaged("it does not begin with MMIDIDX");
  if (const auto version = load<std::uint64_t>(file_.data() + version_at); version != 1)
    damaged(fmt::format("its version is {}", version));
  const int code = load<std::uint8_t>(file_.data() + code_at);
  const auto width = width_of_code(code);
  if (!width)
    damaged(
        fmt::format("its tokens have the type {}, which is none of 1 (uint8), 3 (int16), 4 "
                    "(int32), 5 (int64), 8 (uint16)",
                    code));
  width_ = *width;
  const auto sequences = load<std::uint64_t>(file_.data() + sequences_at);
  const auto marks = load<std::uint64_t>(file_.data() + marks_at);
  const auto room = static_cast<std::uint64_t>(file_.bytes());
  const std::uint64_t needed =
      sequences > room || marks > room ? UINT64_MAX : header_bytes + 12 * sequences + 8 * marks;
  if (needed != room && needed + sequences != room)  // with modes
    damaged(
        fmt::format("its header says {} sequences and {} document marks, which need {}{} bytes, "
                    "but it has {}: it is cut or damaged",
                    sequences, marks, needed == UINT64_MAX ? "more than " : "",
                    needed == UINT64_MAX ? room : needed, room));
  if (marks < 1) damaged("it has no document marks");
  sequences_ = static_cast<std::int64_t>(sequences);
  marks_ = static_cast<std::int64_t>(marks);
}

void MegatronIndex::check_sequences(const std::filesystem::path& path,
                                    const std::filesystem::path& bin,
                                    std::int64_t bin_bytes) const {
  const auto unfit = [&](const std::string& what) {
    throw InputError(
        fmt::format("{} does not fit {}: {}; the two must come from one run of "
                    "preprocess_data.py: get both again",
                    path.string(), bin.string(), what));
  };
  std::int64_t end = 0;  // in bytes
  for (std::int64_t s = 0; s < sequences_; ++s) {
    if (length(s) < 0) unfit(fmt::format("sequence {} has {} tokens", s, length(s)));
    if (offset(s) != end)
      unfit(fmt::format("sequence {} begins at byte {}, but the ones before it end at byte {}", s,
                        offset(s), end));
    end += length(s) * bytes_of(width_);
    if (end > bin_bytes)
      unfit(fmt::format("sequence {} of {} ends at byte {}, but the .bin has {} bytes", s,
                        sequences_, end, bin_bytes));
  }
  if (end != bin_bytes)
    unfit(fmt::format("its {} sequences end at byte {}, but the .bin has {} bytes", sequences_, end,
                      bin_bytes));
}

void MegatronIndex::check_marks(const std::filesystem::path& path) const {
  bool good = mark(0) == 0 && mark(marks_ - 1) == sequences_;
  for (std::int64_t m = 1; m < marks_; ++m) good = good && mark(m - 1) <= mark(m);
  if (!good)
    throw InputError(
        fmt::format("{}: its document marks do not ascend from 0 to its {} sequences; it is "
                    "damaged, make it again with Megatron-LM's preprocess_data.py",
                    path.string(), sequences_));
}

std::int64_t MegatronIndex::length(std::int64_t sequence) const {
  return load<std::int32_t>(file_.data() + header_bytes + 4 * sequence);
}
std::int64_t MegatronIndex::offset(std::int64_t sequence) const {
  return load<std::int64_t>(file_.data() + header_bytes + 4 * sequences_ + 8 * sequence);
}
std::int64_t MegatronIndex::mark(std::int64_t index) const {
  return load<std::int64_t>(file_.data() + header_bytes + 12 * sequences_ + 8 * index);
}

MegatronIndex::Document MegatronIndex::document(std::int64_t index) const {
  const auto first_token = [&](std::int64_t sequence) {
    return sequence < sequences_ ? offset(sequence) / bytes_of(width_) : bin_tokens_;
  };
  const std::int64_t first = first_token(mark(index));
  return {first, first_token(mark(index + 1)) - first};
}

}  // namespace scone

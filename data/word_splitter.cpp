#include "data/word_splitter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "parallel/error.h"

namespace scone {
namespace {

struct FreePcre2 {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

std::string pcre2_message(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

/// Steps that the interpreter may take where the compiled matcher ran out of stack.
constexpr std::uint32_t kMatchLimit = 4'000'000'000;

}  // namespace

struct WordSplitter::State {
  std::unique_ptr<pcre2_code, FreePcre2> code;

  /// One match from `start`; the return value and `data` are as pcre2_match leaves them.
  int match(std::string_view text, std::size_t start, pcre2_match_data* data) const {
    const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    // A match that is empty would not advance.
    const int found =
        pcre2_match(code.get(), subject, text.size(), start, PCRE2_NOTEMPTY, data, nullptr);
    if (found != PCRE2_ERROR_JIT_STACKLIMIT && found != PCRE2_ERROR_MATCHLIMIT) return found;
    const std::unique_ptr<pcre2_match_context, FreePcre2> context(
        pcre2_match_context_create(nullptr));
    pcre2_set_match_limit(context.get(), kMatchLimit);
    return pcre2_match(code.get(), subject, text.size(), start, PCRE2_NOTEMPTY | PCRE2_NO_JIT, data,
                       context.get());
  }
};

WordSplitter::WordSplitter(const std::string& pattern, const std::string& source)
    : state_(std::make_unique<State>()) {
  int error = 0;
  PCRE2_SIZE position = 0;
  state_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF, &error,
                                   &position, nullptr));
  if (!state_->code) {
    throw InputError(
        fmt::format("{}: expected a regular expression, found '{}', which fails at "
                    "character {}: {}; mend the expression",
                    source, pattern, position, pcre2_message(error)));
  }
  // Where there is no just-in-time compiler for this processor, the interpreter matches the same.
  pcre2_jit_compile(state_->code.get(), PCRE2_JIT_COMPLETE);
}

WordSplitter::~WordSplitter() = default;
WordSplitter::WordSplitter(WordSplitter&&) noexcept = default;

void WordSplitter::split(std::string_view text,
                         const std::function<void(std::string_view)>& word) const {
  const std::unique_ptr<pcre2_match_data, FreePcre2> data(
      pcre2_match_data_create_from_pattern(state_->code.get(), nullptr));
  if (!data) throw std::bad_alloc();
  std::size_t done = 0;
  while (done < text.size()) {
    const int found = state_->match(text, done, data.get());
    if (found == PCRE2_ERROR_NOMATCH) break;
    if (found < 0) {
      throw std::runtime_error(fmt::format("pre-tokenisation failed at byte {} of a document: {}",
                                           done, pcre2_message(found)));
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data.get());
    // \K may put a match's start in odd places; the words must stay in order and cover the text.
    if (bounds[0] < done || bounds[1] <= bounds[0]) {
      throw std::runtime_error("pre-tokenisation failed: the expression matches backwards");
    }
    if (bounds[0] > done) word(text.substr(done, bounds[0] - done));
    word(text.substr(bounds[0], bounds[1] - bounds[0]));
    done = bounds[1];
  }
  if (done < text.size()) word(text.substr(done));
}

}  // namespace scone

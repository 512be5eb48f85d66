#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace scone {

/// Cuts text into the matches of one regular expression (PCRE2, Unicode properties) and the pieces
/// between them; together they are the text. Immutable and safe to use from several threads.
class WordSplitter {
 public:
  /// Throws InputError, naming `source`, where the expression is not valid.
  WordSplitter(const std::string& pattern, const std::string& source);
  ~WordSplitter();
  WordSplitter(WordSplitter&&) noexcept;

  /// Calls word(piece) in the order of the text; pieces are never empty. Bytes that are no UTF-8
  /// match nothing. Throws std::runtime_error where the matcher gives up.
  void split(std::string_view text, const std::function<void(std::string_view)>& word) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace scone

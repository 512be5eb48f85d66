#include "data/document_pieces.h"

#include <deque>
#include <future>
#include <memory>
#include <utility>

#include "data/ordered_tasks.h"

namespace scone {
namespace {

constexpr std::int64_t in_flight_bytes = 64 << 20;

struct Made {
  std::vector<EncodedDocument> documents;
  TextCounts counts;
};

void add(TextCounts& sum, const TextCounts& more) {
  sum.documents += more.documents;
  sum.text_bytes += more.text_bytes;
  sum.invalid_sequences += more.invalid_sequences;
  sum.empty_documents += more.empty_documents;
}

}  // namespace

TextPieces::TextPieces(const TextSource& source, const Tokenizer& tokenizer,
                       std::int64_t piece_bytes)
    : source_(source),
      tokenizer_(tokenizer),
      pieces_(source.pieces(piece_bytes)),
      encoder_(tokenizer) {}

std::int64_t TextPieces::bytes(std::int64_t piece) const {
  return pieces_.at(static_cast<std::size_t>(piece)).bytes;
}

TextCounts TextPieces::make(std::int64_t piece,
                            const std::function<void(EncodedDocument&&)>& sink) const {
  TextSource source = source_.piece(pieces_.at(static_cast<std::size_t>(piece)));
  for (std::string text; source.next(text);) sink(encoder_.encode(text));
  return source.counts();
}

std::unique_ptr<TextSource> TextPieces::long_text(std::int64_t piece) const {
  const TextPiece& of = pieces_.at(static_cast<std::size_t>(piece));
  return of.is_long ? std::make_unique<TextSource>(source_.piece(of)) : nullptr;
}

std::pair<std::int64_t, std::int64_t> pieces_of_rank(const DocumentPieces& pieces, int rank,
                                                     int ranks) {
  std::int64_t total = 0;
  for (std::int64_t p = 0; p < pieces.count(); ++p) total += pieces.bytes(p);
  const auto first_of = [&](int of) {
    std::int64_t p = 0, before = 0;
    while (p < pieces.count() && before < total / ranks * of) before += pieces.bytes(p++);
    return of == ranks ? pieces.count() : p;
  };
  return {first_of(rank), first_of(rank + 1)};
}

TextCounts encode_pieces(const DocumentPieces& pieces, std::int64_t first, std::int64_t last,
                         int threads, const std::function<void(EncodedDocument&&)>& sink,
                         const std::function<void(std::int64_t)>& after_piece) {
  TextCounts counts;
  struct InFlight {
    std::future<Made> result;
    std::int64_t piece;
  };
  std::deque<InFlight> in_flight;
  std::int64_t bytes = 0;
  OrderedTasks<Made> tasks(threads);
  const auto hand_out_oldest = [&] {
    const std::int64_t piece = in_flight.front().piece;
    Made made = in_flight.front().result.get();
    in_flight.pop_front();
    bytes -= pieces.bytes(piece);
    for (EncodedDocument& document : made.documents) sink(std::move(document));
    add(counts, made.counts);
    after_piece(piece);
  };
  for (std::int64_t piece = first; piece < last; ++piece) {
    if (const auto text = pieces.long_text(piece)) {
      while (!in_flight.empty()) hand_out_oldest();
      encode_documents(
          pieces.tokenizer(), threads, [&](std::string& document) { return text->next(document); },
          sink);
      add(counts, text->counts());
      after_piece(piece);
      continue;
    }
    in_flight.push_back({tasks.submit([&pieces, piece] {
                           Made made;
                           made.counts = pieces.make(piece, [&](EncodedDocument&& document) {
                             made.documents.push_back(std::move(document));
                           });
                           return made;
                         }),
                         piece});
    bytes += pieces.bytes(piece);
    while (!in_flight.empty() && bytes > in_flight_bytes) hand_out_oldest();
  }
  while (!in_flight.empty()) hand_out_oldest();
  return counts;
}

}  // namespace scone

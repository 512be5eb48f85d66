#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "data/fgram_statistics.h"
#include "data/fgram_vocabulary.h"
#include "data/token_corpus.h"

namespace scone {

nlohmann::json coverage_json(const FgramCoverage& coverage);

/// Of the trie of batches: distinct nodes and f-grams a token, a row for each batch size; prints a
/// table on stderr.
nlohmann::json report_sharing(const TokenCorpus& corpus, const FgramVocabulary& vocabulary,
                              const FgramCoverage& coverage,
                              const std::vector<std::int64_t>& batch_tokens);

/// The count of the last f-gram of the first 1, 2, 5, 10, .. size() f-grams.
nlohmann::json report_cutoffs(const FgramVocabulary& vocabulary);

/// The first and the last f-grams of each length: id, count, tokens, and text where the corpus'
/// tokenizer is found.
nlohmann::json report_examples(const TokenCorpus& corpus, const FgramVocabulary& vocabulary);

/// Throws InputError where gnuplot is missing.
void require_gnuplot();

/// Draws coverage by length, cut-off counts and nodes a token as one SVG, by gnuplot. report: with
/// "coverage", "cutoffs" and "sharing". Throws std::runtime_error where gnuplot fails.
void draw_report(const nlohmann::json& report, const std::filesystem::path& path);

}  // namespace scone

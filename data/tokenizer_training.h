#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace scone {

/// Trains a SentencePiece BPE of exactly vocabulary_size pieces on the documents and writes it to
/// model_file (under a temporary name until it is whole). The model is lossless: no normalisation,
/// no space in front, all spaces kept, byte pieces for rare characters, "\n" and "\t" pieces of
/// their own, digits one by one; </s> ends a document. next_document fills its argument with the
/// next document (UTF-8) and returns false after the last. A sample of the lines that is bounded in
/// bytes is held in memory and trained on: the same documents in the same order give the same
/// file, whatever the number of threads. threads: used for counting characters. Throws InputError:
/// vocabulary_size too small, or too big for the documents, model_file's folder not writable;
/// std::runtime_error: writing fails.
void train_tokenizer(const std::function<bool(std::string&)>& next_document,
                     std::int64_t vocabulary_size, const std::filesystem::path& model_file,
                     int threads);

}  // namespace scone

#include "tiny_data.h"

#include "checkpoint/tiny_run.h"
#include "data/fgram_vocabulary_builder.h"
#include "data/tokenizer.h"

namespace scone {

TinyData::TinyData(int special_tokens) {
  const auto tokenizer = load_tokenizer(write_byte_tokenizer(folder_.path(), special_tokens));
  const int vocabulary = 256 + special_tokens;
  const auto write = [&](const char* name, std::uint64_t seed, int documents) {
    Documents all = random_documents(seed, documents, 120, 40);
    for (auto& document : all)  // 40 tokens, over all of the vocabulary, its last included
      for (std::int32_t& token : document) token = vocabulary - 1 - 6 * token;
    write_shard(folder_ / name, all, vocabulary, tokenizer->fingerprint());
  };
  write("train.h5", 1, 60);
  write("validation.h5", 2, 20);
  FgramBuildOptions options;
  options.size = 500;
  options.max_length = 4;
  options.min_count = 2;
  const TokenCorpus corpus({folder_ / "train.h5"});
  const auto self = make_self_communicator();
  build_fgram_vocabulary(*self, corpus, options, folder_ / "fgrams.h5");
}

RunConfig TinyData::run(const std::string& name, std::int64_t fgram_layers) const {
  RunConfig config;
  config.run.folder = folder_ / name;
  config.data.train = {folder_ / "train.h5"};
  config.data.validation = {folder_ / "validation.h5"};
  config.fgrams.vocabulary = folder_ / "fgrams.h5";
  config.model.main = {.width = 16, .layers = 2, .heads = 2, .ffw = 32, .context = 32};
  config.model.fgram = config.model.main;
  config.model.fgram.layers = fgram_layers;
  config.model.fgram_chunk_nodes = 64;  // several chunks a batch
  config.optimizer.peak_lr = 1e-2;
  config.trainer.steps = 6;
  config.trainer.batch_tokens = 8 * 32;
  config.trainer.microbatch_tokens = 3 * 32;  // does not divide a rank's share
  config.trainer.sequence_length = 32;
  config.logging.every = 100;
  return config;
}

}  // namespace scone

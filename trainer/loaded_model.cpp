#include "trainer/loaded_model.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "checkpoint/checkpoint.h"
#include "data/tokenizer.h"
#include "model/ops/ops.h"
#include "parallel/error.h"

namespace scone {
namespace {

void make_main_model(LoadedModel& model, Backend& backend, std::int64_t microbatch_sequences) {
  model.main_parameters =
      std::make_unique<ParameterSet>(main_parameter_specs(model.config), backend.device());
  model.main_model =
      std::make_unique<MainModel>(model.config, *model.main_parameters, backend,
                                  microbatch_sequences * model.config.main.context, false);
}

LoadedModel load_bundle(const std::filesystem::path& path, Backend& backend,
                        std::int64_t microbatch_sequences) {
  LoadedModel model;
  model.kind = "bundle";
  model.path = path;
  model.bundle.emplace(open_bundle(path));
  Bundle& bundle = *model.bundle;
  model.config = bundle.config;
  model.step = bundle.description.at("step");
  model.sequence_length = bundle.description.at("sequence_length");
  model.attention_across_documents = bundle.description.at("attention_across_documents");
  const auto& tokenizer = bundle.description.at("tokenizer");
  model.tokenizer_path = path / tokenizer.at("file").get<std::string>();
  model.tokenizer_fingerprint = tokenizer.at("fingerprint");
  make_main_model(model, backend, microbatch_sequences);
  bundle.load_main_parameters(*model.main_parameters);
  if (bundle.table) {
    model.vocabulary = std::move(bundle.vocabulary);
    model.source = std::make_unique<TableSource>(*bundle.table);
  }
  return model;
}

LoadedModel load_checkpoint(const std::filesystem::path& path, Backend& backend,
                            std::int64_t microbatch_sequences,
                            const std::filesystem::path& fgrams) {
  std::vector<std::string> skipped;
  const auto checkpoint = find_checkpoint(path, &skipped);
  for (const auto& line : skipped) spdlog::warn("skipped {}", line);
  if (!checkpoint)
    throw InputError(fmt::format(
        "{}: neither a bundle (bundle.json) nor a folder with a valid checkpoint (manifest.json)",
        path.string()));
  LoadedModel model;
  model.kind = "checkpoint";
  model.path = *checkpoint;
  const CheckpointManifest manifest = read_manifest(*checkpoint);
  try {
    model.config = manifest.model.get<ModelConfig>();
    model.step = manifest.step;
    model.sequence_length = manifest.run.at("sequence_length");
    model.attention_across_documents = manifest.run.at("attention_across_documents");
    model.tokenizer_path = manifest.data.at("tokenizer").get<std::string>();
    model.tokenizer_fingerprint = manifest.data.at("tokenizer_fingerprint");
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: {}", (*checkpoint / "manifest.json").string(), error.what()));
  }
  make_main_model(model, backend, microbatch_sequences);
  read_parameters(*checkpoint, *model.main_parameters);
  if (model.config.fgram.layers == 0) return model;
  model.vocabulary = std::make_unique<FgramVocabulary>(
      fgrams.empty() ? std::filesystem::path(manifest.fgrams.at("vocabulary").get<std::string>())
                     : fgrams,
      fgrams.empty() ? manifest.fgrams.at("size").get<std::int64_t>() : 0,
      manifest.fgrams.at("max_length").get<int>());
  if (fgrams.empty() && model.vocabulary->fingerprint() != manifest.fgrams.at("fingerprint"))
    throw InputError(
        fmt::format("{}: the f-gram vocabulary has changed since {} was trained with it",
                    manifest.fgrams.at("vocabulary").get<std::string>(), checkpoint->string()));
  if (model.vocabulary->tokenizer_fingerprint() != model.tokenizer_fingerprint)
    throw InputError(
        fmt::format("{}: f-grams of another tokenizer than the model's", fgrams.string()));
  model.fgram_parameters =
      std::make_unique<ParameterSet>(fgram_parameter_specs(model.config), backend.device());
  read_parameters(*checkpoint, *model.fgram_parameters);
  model.fgram_model = std::make_unique<FgramModel>(model.config, *model.fgram_parameters,
                                                   *model.main_parameters, backend, false);
  model.source = std::make_unique<LiveFgramSource>(*model.vocabulary, *model.fgram_model,
                                                   model.config.main.width);
  return model;
}

}  // namespace

LoadedModel load_model(const std::filesystem::path& path, Backend& backend,
                       std::int64_t microbatch_sequences, const std::filesystem::path& fgrams) {
  if (!std::filesystem::exists(path))
    throw InputError(fmt::format("{}: no such run, checkpoint or bundle", path.string()));
  if (!is_bundle(path)) return load_checkpoint(path, backend, microbatch_sequences, fgrams);
  if (!fgrams.empty())
    throw InputError(fmt::format(
        "{}: a bundle has its f-grams built in; --fgrams goes with a checkpoint", path.string()));
  return load_bundle(path, backend, microbatch_sequences);
}

}  // namespace scone

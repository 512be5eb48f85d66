#include "trainer/loaded_model.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include "checkpoint/checkpoint.h"
#include "checkpoint/table/memory_region.h"
#include "data/tokenizer.h"
#include "model/ops/ops.h"
#include "parallel/communicator.h"
#include "parallel/error.h"
#include "parallel/json_field.h"

namespace scone {
namespace {

void make_main_model(LoadedModel& model, Backend& backend, std::int64_t microbatch_sequences) {
  model.main_parameters =
      std::make_unique<ParameterSet>(main_parameter_specs(model.config), backend.device(),
                                     /*with_gradients=*/false);
  model.main_model = std::make_unique<MainModel>(
      model.config, *model.main_parameters, backend,
      MainModelOptions{.max_positions = microbatch_sequences * model.config.main.context});
}

/// The context of a model with rotary positions stands in bundle.json alone: memory for one that
/// was damaged would be granted, and the process killed when it is used. Throws InputError.
void require_memory_for_context(const Bundle& bundle, std::int64_t microbatch_sequences) {
  const TransformerConfig& main = bundle.config.main;
  // A position has at least the residual stream, its norm, q, k, v and the attention's output.
  const double numbers = 6 * static_cast<double>(main.width) + static_cast<double>(main.ffw);
  const double needed = static_cast<double>(sizeof(float)) * numbers *
                        static_cast<double>(main.context) *
                        static_cast<double>(microbatch_sequences);
  const auto available = static_cast<double>(available_memory());
  if (needed > available)
    throw InputError(fmt::format(
        "{}: model.main.context: {} positions, {} sequences at a time, take at least {:.0f} MB, "
        "and {:.0f} MB of memory are available; copy the bundle again if it is another's number, "
        "or take fewer sequences at a time, or a larger machine",
        (bundle.folder / "bundle.json").string(), main.context, microbatch_sequences, needed / 1e6,
        available / 1e6));
}

LoadedModel load_bundle(const std::filesystem::path& path, Backend& backend,
                        std::int64_t microbatch_sequences, const RowSourceOptions& rows,
                        std::unique_ptr<RunGrids> grids) {
  LoadedModel model;
  model.grids = std::move(grids);
  model.kind = "bundle";
  model.path = path;
  model.bundle.emplace(open_bundle(path, rows));
  Bundle& bundle = *model.bundle;
  model.config = bundle.config;
  model.step = bundle.description.at("step");
  model.sequence_length = bundle.description.at("sequence_length");
  model.attention_across_documents = bundle.description.at("attention_across_documents");
  const auto& tokenizer = bundle.description.at("tokenizer");
  model.tokenizer_path = path / tokenizer.at("file").get<std::string>();
  model.tokenizer_fingerprint = tokenizer.at("fingerprint");
  if (backend.device() == Device::cpu) require_memory_for_context(bundle, microbatch_sequences);
  make_main_model(model, backend, microbatch_sequences);
  fill_on_host(*model.main_parameters, backend,
               [&](ParameterSet& host) { bundle.load_main_parameters(host); });
  if (bundle.table) {
    if (!bundle.table->fallback().empty() && model.grids->world.rank() == 0)
      spdlog::warn("{}", bundle.table->fallback());
    model.matcher = std::move(bundle.matcher);
    model.source = std::make_unique<TableSource>(*bundle.table, backend);
  }
  return model;
}

LoadedModel load_checkpoint(const std::filesystem::path& path, Backend& backend,
                            std::int64_t microbatch_sequences, const std::filesystem::path& fgrams,
                            std::unique_ptr<RunGrids> grids) {
  Communicator& world = grids->world;
  // One rank chooses, so that all read the same checkpoint, also of a run that goes on writing.
  std::string chosen;
  if (world.rank() == 0) {
    std::vector<std::string> skipped;
    chosen = find_checkpoint(path, &skipped).value_or("").string();
    for (const auto& line : skipped) spdlog::warn("skipped {}", line);
  }
  chosen = world.broadcast_string(chosen, 0);
  std::optional<std::filesystem::path> checkpoint;
  if (!chosen.empty()) checkpoint = chosen;
  if (!checkpoint)
    throw InputError(fmt::format(
        "{}: neither a bundle (bundle.json) nor a folder with a valid checkpoint (manifest.json)",
        path.string()));
  LoadedModel model;
  model.grids = std::move(grids);
  model.kind = "checkpoint";
  model.path = *checkpoint;
  const CheckpointManifest manifest = read_manifest(*checkpoint);
  struct {
    std::filesystem::path vocabulary;
    std::int64_t size = 0;
    int max_length = 0;
    std::string fingerprint;
  } trained;  // the f-grams that the checkpoint was trained with
  try {
    model.config =
        read_model_config({manifest.model, (*checkpoint / "manifest.json").string(), "model"});
    model.step = manifest.step;
    model.sequence_length = manifest.run.at("sequence_length");
    model.attention_across_documents = manifest.run.at("attention_across_documents");
    model.tokenizer_path = manifest.data.at("tokenizer").get<std::string>();
    model.tokenizer_fingerprint = manifest.data.at("tokenizer_fingerprint");
    if (model.config.fgram.layers > 0) {
      trained.vocabulary = manifest.fgrams.at("vocabulary").get<std::string>();
      manifest.fgrams.at("size").get_to(trained.size);
      manifest.fgrams.at("max_length").get_to(trained.max_length);
      manifest.fgrams.at("fingerprint").get_to(trained.fingerprint);
    }
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: {}", (*checkpoint / "manifest.json").string(), error.what()));
  }
  if (model.config.fgram.layers == 0 && !fgrams.empty())
    throw InputError(fmt::format("--fgrams {}: {} is a baseline without f-gram model; leave it out",
                                 fgrams.string(), checkpoint->string()));
  make_main_model(model, backend, microbatch_sequences);
  const auto read = [&](ParameterSet& host) { read_parameters(*checkpoint, host); };
  fill_on_host(*model.main_parameters, backend, read);
  if (model.config.fgram.layers == 0) return model;
  const std::filesystem::path file = fgrams.empty() ? trained.vocabulary : fgrams;
  auto vocabulary = std::make_unique<FgramVocabulary>(file, fgrams.empty() ? trained.size : 0,
                                                      trained.max_length);
  if (fgrams.empty() && vocabulary->fingerprint() != trained.fingerprint)
    throw InputError(
        fmt::format("{}: the f-gram vocabulary has changed since {} was trained with it; put the "
                    "original back, or give one with --fgrams",
                    file.string(), checkpoint->string()));
  if (vocabulary->tokenizer_fingerprint() != model.tokenizer_fingerprint ||
      vocabulary->token_vocabulary_size() != model.config.vocabulary_size)
    throw InputError(
        fmt::format("{}: f-grams of another tokenizer than the model's; run `scone "
                    "fgrams` on shards of the model's tokenizer",
                    file.string()));
  model.fgram_parameters =
      std::make_unique<ParameterSet>(fgram_parameter_specs(model.config), backend.device(),
                                     /*with_gradients=*/false);
  fill_on_host(*model.fgram_parameters, backend, read);
  model.fgram_model =
      std::make_unique<FgramModel>(model.config, *model.fgram_parameters,
                                   whole_token_table(*model.main_parameters), backend, false);
  model.source = std::make_unique<LiveFgramSource>(*vocabulary, *model.fgram_model,
                                                   whole_token_table(*model.main_parameters),
                                                   *model.grids, backend, model.config.main.width);
  model.matcher = std::move(vocabulary);
  return model;
}

}  // namespace

LoadedModel load_model(const std::filesystem::path& path, Backend& backend,
                       std::int64_t microbatch_sequences, const std::filesystem::path& fgrams,
                       Communicator& world, const RowSourceOptions& rows) {
  if (!std::filesystem::exists(path))
    throw InputError(fmt::format("{}: no such run, checkpoint or bundle", path.string()));
  auto grids = std::make_unique<RunGrids>(world, 1, 1);
  if (!is_bundle(path))
    return load_checkpoint(path, backend, microbatch_sequences, fgrams, std::move(grids));
  if (!fgrams.empty())
    throw InputError(fmt::format(
        "{}: a bundle has its f-grams built in; --fgrams goes with a checkpoint", path.string()));
  return load_bundle(path, backend, microbatch_sequences, rows, std::move(grids));
}

}  // namespace scone

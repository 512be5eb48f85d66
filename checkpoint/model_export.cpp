#include "checkpoint/model_export.h"

#include <fmt/format.h>

#include <memory>
#include <system_error>

#include "checkpoint/checkpoint.h"
#include "checkpoint/checkpoint_folder.h"
#include "checkpoint/durable_file.h"
#include "checkpoint/export_names.h"
#include "checkpoint/model_source.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/unfinished_folder.h"
#include "model/fgram_model.h"
#include "model/main_model.h"
#include "parallel/json_field.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kFormat = "scone-export";
constexpr int kVersion = 1;
constexpr const char* kMainFile = "model.safetensors";
constexpr const char* kFgramFile = "fgram_model.safetensors";
constexpr const char* kVocabularyFile = "fgrams.h5";

/// The keys that Hugging Face's tools know, of one model.
nlohmann::json known_keys(const ModelConfig& model, const TransformerConfig& config) {
  return {{"hidden_size", config.width},
          {"num_hidden_layers", config.layers},
          {"num_attention_heads", config.heads},
          {"num_key_value_heads", config.heads},
          {"intermediate_size", config.ffw},
          {"max_position_embeddings", config.context},
          {"vocab_size", model.vocabulary_size},
          {"hidden_act", config.activation == ActivationKind::gelu ? "gelu_pytorch_tanh" : "silu"},
          {"norm_type", config.norm == NormKind::rmsnorm ? "rmsnorm" : "layernorm"},
          {"rms_norm_eps", 1e-5},
          {"layer_norm_eps", 1e-5},
          {"rope_theta",
           config.position == PositionKind::rope ? nlohmann::json(10000.0) : nlohmann::json()},
          {"attention_bias", config.bias},
          {"mlp_bias", config.bias},
          {"torch_dtype", "float32"}};
}

nlohmann::json config_json(const ModelSource& source, const nlohmann::json& tokenizer,
                           const nlohmann::json& fgrams, const nlohmann::json& files) {
  nlohmann::json json = known_keys(source.config, source.config.main);
  const CheckpointManifest& manifest = source.manifest;
  json.update(
      {{"format", kFormat},
       {"format_version", kVersion},
       {"model_type", "scone"},
       {"tie_word_embeddings", source.config.tie_embeddings},
       {"model", manifest.model},
       {"step", manifest.step},
       {"tokens", manifest.tokens},
       {"sequence_length",
        manifest_value<std::int64_t>(source.checkpoint, manifest.run, "run.sequence_length")},
       {"attention_across_documents",
        manifest_value<bool>(source.checkpoint, manifest.run, "run.attention_across_documents")},
       {"tokenizer", tokenizer},
       {"fgrams", fgrams},
       {"files", files}});
  if (!fgrams.is_null()) json["fgram_model"] = known_keys(source.config, source.config.fgram);
  return json;
}

ParameterSet read_set(const fs::path& checkpoint, std::vector<ParameterSpec> specs) {
  ParameterSet parameters(std::move(specs), Device::cpu, /*with_gradients=*/false);
  read_parameters(checkpoint, parameters);
  return parameters;
}

std::int64_t write_set(const fs::path& path, const ParameterSet& parameters) {
  write_safetensors(path, exported_views(parameters), {{"format", "pt"}, {"producer", "scone"}});
  std::int64_t elements = 0;
  for (std::size_t i = 0; i < parameters.size(); ++i) elements += parameters.value(i).elements();
  return elements;
}

/// Adds a parameter set read from a safetensors file, and zero moments, to a checkpoint's tensors.
void add_set(const fs::path& path, std::vector<ParameterSpec> specs,
             std::vector<NamedTensor>& tensors) {
  const SafetensorsFile file(path);
  const ParameterSet parameters(std::move(specs), Device::cpu, /*with_gradients=*/false);
  const auto views = exported_views(parameters);
  for (const NamedTensor& view : views) file.read(view.name, view.tensor);
  if (file.entries().size() != views.size()) {
    throw InputError(fmt::format("{}: expected {} tensors as config.json has them, found {}",
                                 path.string(), views.size(), file.entries().size()));
  }
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const std::string& name = parameters.spec(i).name;
    tensors.push_back({"parameters/" + name, parameters.value(i)});
    const Tensor zeros = Tensor::zeros(parameters.value(i).shape());
    tensors.push_back({"adam_m/" + name, zeros});
    tensors.push_back({"adam_v/" + name, zeros});
  }
}

}  // namespace

ExportResult export_model(const fs::path& source_path, const fs::path& folder) {
  ExportResult result;
  if (folder.empty()) throw InputError("--out: expected the name of a folder, found an empty one");
  const auto refuse_existing = [&] {
    if (fs::exists(folder))
      throw InputError(fmt::format("{}: exists already; give another --out", folder.string()));
  };
  refuse_existing();
  const auto checkpoint = find_checkpoint(source_path, &result.skipped);
  if (!checkpoint) {
    throw InputError(fmt::format(
        "{}: no valid checkpoint; expected a run's folder, its checkpoints folder or one "
        "checkpoint{}{}",
        source_path.string(), result.skipped.empty() ? "" : ": ", fmt::join(result.skipped, "; ")));
  }
  result.checkpoint = *checkpoint;
  const ModelSource source = open_model_source(*checkpoint);
  result.step = source.manifest.step;
  const auto tokenizer = open_source_tokenizer(source);
  std::unique_ptr<FgramVocabulary> vocabulary;
  if (source.config.fgram.layers > 0) {
    vocabulary = std::make_unique<FgramVocabulary>(open_source_vocabulary(source));
  }

  const fs::path target = fs::absolute(folder).lexically_normal();
  const fs::path normal = target.filename().empty() ? target.parent_path() : target;
  const fs::path temporary = normal.string() + ".tmp";
  const UnfinishedFolder unfinished(temporary);
  try {
    refuse_existing();  // again: another may have ended meanwhile
    unfinished.clear();
    const std::string tokenizer_name =
        tokenizer->file().extension() == ".json" ? "tokenizer.json" : "tokenizer.model";
    fs::copy_file(tokenizer->file(), temporary / tokenizer_name);
    std::vector<std::string> names = {kMainFile, tokenizer_name};
    result.parameters = write_set(temporary / kMainFile,
                                  read_set(*checkpoint, main_parameter_specs(source.config)));
    nlohmann::json fgrams;
    if (vocabulary) {
      result.parameters += write_set(temporary / kFgramFile,
                                     read_set(*checkpoint, fgram_parameter_specs(source.config)));
      vocabulary->save(temporary / kVocabularyFile);
      names.insert(names.end(), {kFgramFile, kVocabularyFile});
      fgrams = {{"file", kVocabularyFile},
                {"size", vocabulary->size()},
                {"max_length", vocabulary->max_length()},
                {"fingerprint", vocabulary->fingerprint()}};
    }
    for (const std::string& name : names) sync_path(temporary / name);
    const nlohmann::json json = config_json(
        source, {{"file", tokenizer_name}, {"fingerprint", source.tokenizer_fingerprint}}, fgrams,
        describe_files(temporary, names));
    write_text_durably(temporary / kConfigFile, json.dump(2) + "\n");
    sync_path(temporary);
    unfinished.publish(normal, normal.string() + ".old.tmp");
  } catch (...) {
    unfinished.remove();
    throw;
  }
  return result;
}

bool is_export(const fs::path& path) {
  std::error_code error;
  if (!fs::is_regular_file(path / kConfigFile, error)) return false;
  try {
    const nlohmann::json json = read_json_file(path / kConfigFile);
    return json.is_object() && json.value("format", "") == kFormat;
  } catch (const std::exception&) {  // another program's file of that name
    return false;
  }
}

std::vector<std::string> export_problems(const fs::path& folder) {
  try {
    return file_problems(folder, read_json_file(folder / kConfigFile).at("files"), true);
  } catch (const nlohmann::json::exception& error) {
    return {fmt::format("{}: {}", (folder / kConfigFile).string(), error.what())};
  } catch (const InputError& error) {
    return {error.what()};
  }
}

fs::path import_model(const fs::path& exported, const fs::path& run) {
  const fs::path config_path = exported / kConfigFile;
  if (run.empty()) throw InputError("--out: expected the name of a folder, found an empty one");
  if (!fs::exists(config_path)) {
    throw InputError(fmt::format("{}: expected a folder of `scone export`, found no {} in it",
                                 exported.string(), kConfigFile));
  }
  const nlohmann::json json = read_json_file(config_path);
  const fs::path checkpoints = run / "checkpoints";
  CheckpointManifest manifest;
  std::vector<NamedTensor> tensors;
  try {
    if (json.value("format", "") != kFormat || json.value("format_version", 0) != kVersion) {
      throw InputError(
          fmt::format("{}: expected the format \"{}\", version {}; give a folder of "
                      "`scone export`",
                      config_path.string(), kFormat, kVersion));
    }
    const auto problems = export_problems(exported);
    if (!problems.empty()) {
      throw InputError(
          fmt::format("damaged export: {}; export it again", fmt::join(problems, "; ")));
    }
    if (!list_checkpoints(checkpoints).empty()) {
      throw InputError(
          fmt::format("{}: holds checkpoints already; give another --out", checkpoints.string()));
    }
    const auto config = read_model_config({json.at("model"), config_path.string(), "model"});
    const fs::path home = fs::absolute(exported).lexically_normal();
    const auto& tokenizer = json.at("tokenizer");
    manifest.model = json.at("model");
    // `imported`: of the run it shares the model and the tokenizer; data, seed and lengths are the
    // new run's. These lengths are for `scone eval`.
    manifest.run = {{"imported", true},
                    {"updates", 0},
                    {"sequence_length", json.at("sequence_length")},
                    {"attention_across_documents", json.at("attention_across_documents")}};
    manifest.data = {{"epoch", 0},
                     {"sample", 0},
                     {"tokenizer", (home / tokenizer.at("file").get<std::string>()).string()},
                     {"tokenizer_fingerprint", tokenizer.at("fingerprint")}};
    add_set(exported / kMainFile, main_parameter_specs(config), tensors);
    if (config.fgram.layers > 0) {
      const auto& fgrams = json.at("fgrams");
      manifest.fgrams = {{"vocabulary", (home / fgrams.at("file").get<std::string>()).string()},
                         {"size", fgrams.at("size")},
                         {"max_length", fgrams.at("max_length")},
                         {"fingerprint", fgrams.at("fingerprint")}};
      add_set(exported / kFgramFile, fgram_parameter_specs(config), tensors);
    }
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: {}", config_path.string(), error.what()));
  }
  std::error_code error;
  fs::create_directories(checkpoints, error);
  if (error) {
    throw InputError(fmt::format("--out {}: {} cannot be made: {}; give another one", run.string(),
                                 checkpoints.string(), error.message()));
  }
  return write_checkpoint(checkpoints, manifest, tensors, 0);
}

}  // namespace scone

#include "trainer/resume_settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "parallel/error.h"
#include "trainer/config_schema.h"

namespace scone {
namespace {

using Json = nlohmann::json;

struct Difference {
  std::string key, saved, own;
};

std::string text_of(const Json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

std::int64_t fgram_layers(const Json& model) {
  return model.at("fgram").at("layers").get<std::int64_t>();
}

/// The key that sets what the manifest's model holds at a JSON pointer ("/main/width").
std::string key_of(const std::string& pointer) {
  static const std::map<std::string, std::string> named_apart = {
      {"/vocabulary_size", "data.train"},
      {"/tie_embeddings", "model.main.tie_embeddings"},
      {"/combine", "model.fgram.combine"},
      {"/fgram/width", "model.main.width"},
      {"/fgram/context", "fgrams.max_length"}};
  const auto found = named_apart.find(pointer);
  if (found != named_apart.end()) return found->second;
  std::string key = "model" + pointer;
  std::replace(key.begin(), key.end(), '/', '.');
  return key;
}

/// Whether a difference follows from another: the key was left out in both runs, as far as its
/// values tell.
bool follows(const std::string& pointer, const Json& saved, const Json& own) {
  const auto both = [&](const auto& holds) { return holds(saved) && holds(own); };
  const auto differs = [&](const std::string& at) {
    return saved.at(Json::json_pointer(at)) != own.at(Json::json_pointer(at));
  };
  if (pointer == "/main/ffw")
    return differs("/main/width") && both([](const Json& model) {
             return model.at("main").at("ffw").get<std::int64_t>() ==
                    4 * model.at("main").at("width").get<std::int64_t>();
           });
  if (!pointer.starts_with("/fgram/")) return false;
  const std::string of_main = "/main/" + pointer.substr(7);
  return pointer != "/fgram/layers" && pointer != "/fgram/context" && differs(of_main) &&
         both([&](const Json& model) {
           return model.at(Json::json_pointer(pointer)) == model.at(Json::json_pointer(of_main));
         });
}

void compare_models(const Json& saved, const Json& own, std::vector<Difference>& differences) {
  const bool both_have_fgrams = fgram_layers(saved) > 0 && fgram_layers(own) > 0;
  const Json flat_saved = saved.flatten(), flat_own = own.flatten();
  for (const auto& [pointer, value] : flat_own.items()) {
    if (pointer == "/fgram_recompute" || pointer == "/fgram_chunk_nodes") continue;  // memory alone
    const bool of_fgrams = pointer.starts_with("/fgram/") || pointer == "/combine";
    if (of_fgrams && !both_have_fgrams) continue;  // to begin anew, or to be dropped
    const Json before = flat_saved.value(pointer, Json());
    if (before == value || (!before.is_null() && follows(pointer, saved, own))) continue;
    differences.push_back({key_of(pointer), text_of(before), text_of(value)});
  }
}

void compare_fgrams(const Json& saved, const Json& own, std::vector<Difference>& differences) {
  if (saved.at("fingerprint") == own.at("fingerprint")) return;
  const auto count = differences.size();
  for (const char* name : {"vocabulary", "size", "max_length"}) {
    if (saved.at(name) != own.at(name))
      differences.push_back(
          {fmt::format("fgrams.{}", name), text_of(saved.at(name)), text_of(own.at(name))});
  }
  if (differences.size() > count) return;
  const auto content = [](const Json& of) {
    return fmt::format("{} with fingerprint {}", text_of(of.at("vocabulary")),
                       text_of(of.at("fingerprint")));
  };
  differences.push_back({"fgrams.vocabulary", content(saved), content(own)});
}

}  // namespace

void check_settings(const std::filesystem::path& checkpoint, const CheckpointManifest& saved,
                    const CheckpointManifest& own, bool length_in_tokens) {
  std::vector<Difference> differences;
  compare_models(saved.model, own.model, differences);
  const auto tokenizer = [](const CheckpointManifest& of) {
    return fmt::format("tokens of tokenizer {}", text_of(of.data.at("tokenizer_fingerprint")));
  };
  if (tokenizer(saved) != tokenizer(own))
    differences.insert(differences.begin(), {"data.train", tokenizer(saved), tokenizer(own)});
  if (!saved.run.value("imported", false)) {
    const auto compare = [&](const std::string& section, const std::string& name) {
      if (saved.run.at(name) != own.run.at(name))
        differences.push_back(
            {section + "." + name, text_of(saved.run.at(name)), text_of(own.run.at(name))});
    };
    compare("run", "seed");
    compare("trainer", "sequence_length");
    if (length_in_tokens)
      compare("trainer", "batch_tokens");  // in which the steps left are counted
    compare("data", "attention_across_documents");
    if (fgram_layers(saved.model) > 0 && fgram_layers(own.model) > 0)
      compare_fgrams(saved.fgrams, own.fgrams, differences);
  }
  if (differences.empty()) return;
  // In the order in which keys are printed, the first of several about one key.
  const auto& fields = config_fields();
  const auto place = [&](const Difference& difference) {
    return std::find_if(fields.begin(), fields.end(),
                        [&](const ConfigField& field) { return field.key == difference.key; });
  };
  std::stable_sort(differences.begin(), differences.end(),
                   [&](const auto& a, const auto& b) { return place(a) < place(b); });
  std::set<std::string> named;
  std::string lines;
  for (const Difference& difference : differences) {
    if (named.insert(difference.key).second)
      lines += fmt::format("\n  {}: {} in the checkpoint, {} in this run", difference.key,
                           difference.saved, difference.own);
  }
  throw InputError(fmt::format(
      "{}: was written by a run with other settings; set them back, or give this run a run.folder "
      "of its own:{}",
      checkpoint.string(), lines));
}

}  // namespace scone

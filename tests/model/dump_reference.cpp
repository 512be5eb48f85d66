// scone_dump_reference FOLDER: trains each model case ten AdamW steps and writes, for
// torch_reference.py, FOLDER/CASE.json (configuration, batches, losses, gradient norms) and
// FOLDER/CASE.{initial,gradients,final}.bin: every parameter in the order of the JSON, fp32, before
// training, gradients of the first step, and after training.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "model_fixture.h"

namespace scone {
namespace {

constexpr int kSteps = 10;
constexpr double kClip = 1.0;
constexpr float kWeightDecay = 0.1F;
// eps is larger than in training: key biases have a gradient of exactly zero but for rounding,
// which a small eps would blow up to whole steps.
constexpr float kLearningRate = 1e-2F, kBeta1 = 0.9F, kBeta2 = 0.95F, kEps = 1e-4F;

using Sets = std::vector<ParameterSet*>;

void write(const std::filesystem::path& path, const Sets& sets, bool gradients) {
  std::ofstream file(path, std::ios::binary);
  for (const ParameterSet* set : sets) {
    for (std::size_t i = 0; i < set->size(); ++i) {
      const Tensor& tensor = gradients ? set->gradient(i) : set->value(i);
      file.write(static_cast<const char*>(tensor.raw()),
                 static_cast<std::streamsize>(tensor.bytes()));
    }
  }
  if (!file.flush()) throw std::runtime_error("cannot write " + path.string());
}

nlohmann::json to_json(const reference::Batch& batch) {
  return {{"sequences", batch.sequences},
          {"length", batch.length},
          {"tokens", batch.tokens},
          {"targets", batch.targets},
          {"attention_start", batch.attention_start},
          {"match", batch.match}};
}

void dump(const ModelCase& model_case, const std::filesystem::path& folder) {
  Backend& backend = cpu_backend();
  SconeModel model(model_case.config, random_batch(model_case.config, 100), 3);
  const Sets sets = {&model.main_parameters, &model.fgram_parameters};
  const auto path = [&](const char* what) { return folder / (model_case.name + what); };
  nlohmann::json json = {{"config", model_case.config},
                         {"optimizer",
                          {{"lr", kLearningRate},
                           {"betas", {kBeta1, kBeta2}},
                           {"eps", kEps},
                           {"weight_decay", kWeightDecay},
                           {"clip", kClip}}}};
  std::vector<Tensor> m, v;
  for (const ParameterSet* set : sets) {
    for (std::size_t i = 0; i < set->size(); ++i) {
      json["parameters"].push_back({{"name", set->spec(i).name},
                                    {"shape", set->spec(i).shape},
                                    {"weight_decay", set->spec(i).weight_decay}});
      m.push_back(Tensor::zeros(set->spec(i).shape));
      v.push_back(Tensor::zeros(set->spec(i).shape));
    }
  }
  write(path(".initial.bin"), sets, false);
  for (int step = 1; step <= kSteps; ++step) {
    const auto batch = random_batch(model_case.config, 100 + static_cast<std::uint64_t>(step));
    model.use(batch);
    std::int64_t targets = 0;
    for (const std::int32_t target : batch.targets) targets += target >= 0 ? 1 : 0;
    const double loss = model.forward_backward(batch, 1.0F / static_cast<float>(targets));
    double squares = 0;
    for (const ParameterSet* set : sets)
      squares += backend.squared_norm(std::vector<Tensor>{set->flat_gradients()});
    const double norm = std::sqrt(squares);
    json["steps"].push_back(to_json(batch));
    json["losses"].push_back(loss / static_cast<double>(targets));
    json["gradient_norms"].push_back(norm);
    if (step == 1) write(path(".gradients.bin"), sets, true);
    AdamwStep adamw{kLearningRate,
                    kBeta1,
                    kBeta2,
                    kEps,
                    kWeightDecay,
                    step,
                    static_cast<float>(std::min(1.0, kClip / norm))};
    std::size_t at = 0;
    for (ParameterSet* set : sets) {
      for (std::size_t i = 0; i < set->size(); ++i, ++at) {
        const AdamwRange all{0, 0, set->value(i).elements(), set->spec(i).weight_decay};
        backend.adamw({set->value(i), set->gradient(i), m[at], v[at], {}}, {&all, 1}, adamw);
      }
    }
  }
  write(path(".final.bin"), sets, false);
  std::ofstream(path(".json")) << json.dump();
}

}  // namespace
}  // namespace scone

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: scone_dump_reference FOLDER\n");
    return 2;
  }
  try {
    std::filesystem::create_directories(argv[1]);
    for (const scone::ModelCase& model_case : scone::model_cases()) {
      scone::dump(model_case, argv[1]);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "scone_dump_reference: %s\n", error.what());
    return 1;
  }
  return 0;
}

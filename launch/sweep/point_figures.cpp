// The figures of a sweep's points: counts of parameters and operations, from the data they name.
#include <fmt/format.h>

#include <map>
#include <string>

#include "launch/sweep/sweep_points.h"
#include "model/fgram_model.h"
#include "model/main_model.h"
#include "model/parameter.h"
#include "parallel/error.h"
#include "trainer/config_schema.h"
#include "trainer/run_data.h"

namespace scone {
namespace {

/// What the data say of a configuration.
struct DataFigures {
  std::int64_t token_vocabulary = 0, fgrams = 0;
  int longest_fgram = 0;
};

/// The keys that open_run_data reads.
std::string data_key(const RunConfig& config) {
  std::string key = config.model.fgram.layers > 0 ? "f-grams" : "baseline";
  for (const ConfigField& field : config_fields()) {
    if (field.key.starts_with("data.") || field.key.starts_with("fgrams.") ||
        field.key == "trainer.sequence_length")
      key.append(1, '\n').append(field.print(config));
  }
  return key;
}

DataFigures open_data(RunConfig config) {
  const RunData data = open_run_data(config);
  DataFigures figures{config.model.vocabulary_size, 0, 0};
  if (data.vocabulary) {
    figures.fgrams = data.vocabulary->size();
    figures.longest_fgram = data.vocabulary->max_length();
  }
  return figures;
}

PointFigures figures_of(const RunConfig& config, const DataFigures& data) {
  ModelConfig model = config.model;
  model.vocabulary_size = data.token_vocabulary;
  model.fgram.context = data.longest_fgram;
  PointFigures figures;
  figures.steps = config.total_steps();
  figures.tokens = figures.steps * config.trainer.batch_tokens;
  figures.main_parameters = global_elements(main_parameter_specs(model));
  figures.embedding_parameters = model.vocabulary_size * model.main.width;
  const double head =
      2.0 * static_cast<double>(model.main.width) * static_cast<double>(model.vocabulary_size);
  const double attended = static_cast<double>(config.trainer.sequence_length + 1) / 2;
  figures.main_flops = forward_flops_per_token(model.main, attended) + head;
  if (model.fgram.layers > 0) {
    figures.fgrams = data.fgrams;
    figures.longest_fgram = data.longest_fgram;
    figures.fgram_parameters = global_elements(fgram_parameter_specs(model));
    figures.fgram_node_flops =
        forward_flops_per_token(model.fgram, static_cast<double>(data.longest_fgram + 1) / 2);
  }
  return figures;
}

}  // namespace

void describe_points(std::vector<SweepPoint>& points) {
  std::map<std::string, DataFigures> known;  // most points share their data
  for (SweepPoint& point : points) {
    const auto [at, is_new] = known.emplace(data_key(point.config), DataFigures{});
    try {
      if (is_new) at->second = open_data(point.config);
    } catch (const InputError& error) {
      throw InputError(fmt::format("point {}: {}", point.name, error.what()));
    }
    point.figures = figures_of(point.config, at->second);
  }
}

}  // namespace scone

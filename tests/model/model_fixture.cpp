#include "model_fixture.h"

#include <algorithm>
#include <map>
#include <random>
#include <set>

namespace scone {

std::vector<ModelCase> model_cases() {
  ModelConfig gpt2;
  gpt2.vocabulary_size = 17;
  gpt2.main = {12, 2, 3, 20, 13};
  gpt2.fgram = {12, 2, 2, 16, 4};
  gpt2.fgram_chunk_nodes = 7;  // small enough that chunks repeat ancestors
  std::vector<ModelCase> cases = {{"gpt2", gpt2}};
  ModelConfig llama = gpt2;
  llama.tie_embeddings = false;
  for (TransformerConfig* config : {&llama.main, &llama.fgram}) {
    config->norm = NormKind::rmsnorm;
    config->position = PositionKind::rope;
    config->activation = ActivationKind::swiglu;
    config->bias = false;
  }
  cases.push_back({"llama", llama});
  ModelConfig mixed = gpt2;
  mixed.combine = CombineKind::add;
  mixed.main.bias = false;
  mixed.fgram.activation = ActivationKind::swiglu;
  mixed.fgram.position = PositionKind::rope;
  mixed.fgram.heads = 3;
  cases.push_back({"add_mixed", mixed});
  ModelConfig untied = gpt2;
  untied.tie_embeddings = false;
  untied.main.norm = NormKind::rmsnorm;
  untied.fgram_recompute = FgramRecompute::none;
  cases.push_back({"rmsnorm_bias_untied_kept", untied});
  return cases;
}

reference::Batch random_batch(const ModelConfig& config, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  reference::Batch batch;
  batch.sequences = 2;
  batch.length = 13;
  const auto draw = [&](std::int64_t limit) {
    return static_cast<std::int32_t>(random() % static_cast<std::uint64_t>(limit));
  };
  for (std::int64_t sequence = 0; sequence < batch.sequences; ++sequence) {
    const std::int32_t second_document = 3 + draw(7);
    for (std::int32_t i = 0; i < batch.length; ++i) {
      batch.tokens.push_back(draw(config.vocabulary_size));
      batch.targets.push_back(draw(8) == 0 ? -1 : draw(config.vocabulary_size));
      const std::int32_t start = i < second_document ? 0 : second_document;
      batch.attention_start.push_back(start);
      const std::int64_t longest = std::min<std::int64_t>(config.fgram.context, i - start + 1);
      batch.match.emplace_back();
      if (longest < 2 || draw(3) == 0) continue;
      const std::int64_t n = 2 + draw(longest - 1);
      batch.match.back().assign(batch.tokens.end() - n, batch.tokens.end());
    }
  }
  return batch;
}

SconeModel::SconeModel(const ModelConfig& model, const reference::Batch& batch, std::uint64_t seed,
                       Backend& device, DType dtype)
    : config(model),
      backend(device),
      main_parameters(main_parameter_specs(model), device.device(), true, {}, dtype),
      fgram_parameters(fgram_parameter_specs(model), device.device(), true, {}, dtype) {
  for (ParameterSet* set : {&main_parameters, &fgram_parameters}) {
    for (std::size_t i = 0; i < set->size(); ++i) {
      const ParameterSpec& spec = set->spec(i);
      std::vector<float> values(static_cast<std::size_t>(set->value(i).elements()));
      counter_normal(seed, spec.name, 0, values);
      const auto mean = static_cast<float>(spec.init_mean);
      for (float& value : values) value = mean + 0.3F * value;
      backend.upload(values, set->flat_values().rows(set->offset(i), set->value(i).elements()));
    }
    set->refresh_working(backend);
  }
  use(batch);
  const std::int64_t positions = batch.sequences * batch.length;
  main =
      std::make_unique<MainModel>(config, main_parameters, backend,
                                  MainModelOptions{.max_positions = positions, .training = true});
  fgram = std::make_unique<FgramModel>(config, fgram_parameters, whole_token_table(main_parameters),
                                       backend, true);
}

void SconeModel::use(const reference::Batch& batch) {
  for (auto* list : {&token, &parent, &depth, &row_of_position}) list->clear();
  // The set of all prefixes in lexicographic order is the trie in preorder.
  std::set<std::vector<std::int32_t>> prefixes;
  for (const auto& match : batch.match) {
    for (std::size_t n = 1; n <= match.size(); ++n) {
      prefixes.emplace(match.begin(), match.begin() + static_cast<std::ptrdiff_t>(n));
    }
  }
  std::map<std::vector<std::int32_t>, std::int32_t> place;
  for (std::vector<std::int32_t> prefix : prefixes) {
    place[prefix] = static_cast<std::int32_t>(token.size());
    token.push_back(prefix.back());
    depth.push_back(static_cast<std::int32_t>(prefix.size()) - 1);
    prefix.pop_back();
    parent.push_back(prefix.empty() ? -1 : place.at(prefix));
  }
  for (const auto& match : batch.match) {
    row_of_position.push_back(match.empty() ? -1 : place.at(match));
  }
  for (Tensor* tensor : {&rows, &row_gradients})
    *tensor = Tensor::zeros({nodes().size(), config.main.width}, DType::fp32, backend.device());
}

MicroBatch SconeModel::microbatch(const reference::Batch& batch) const {
  return {batch.sequences, batch.length,          batch.tokens,
          batch.targets,   batch.attention_start, row_of_position};
}

double SconeModel::forward(const reference::Batch& batch, std::span<float> losses) {
  fgram->forward(nodes(), rows);
  return main->forward(microbatch(batch), rows, losses);
}

double SconeModel::forward_backward(const reference::Batch& batch, float loss_scale) {
  for (const Tensor& gradients :
       {main_parameters.flat_gradients(), fgram_parameters.flat_gradients(), row_gradients})
    backend.zero(gradients);
  fgram->forward(nodes(), rows);
  const double total = main->forward_backward(microbatch(batch), rows, row_gradients, loss_scale);
  fgram->backward(nodes(), row_gradients);
  return total;
}

}  // namespace scone

#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "model_fixture.h"
#include "worst_error.h"

namespace scone {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

class ModelTest : public ::testing::TestWithParam<ModelCase> {
 protected:
  ModelConfig config_ = GetParam().config;
  reference::Batch batch_ = random_batch(config_, 5);
  // Rounding steps on the longest way through both models: layers, each with products as long as
  // ffw.
  double path_ = static_cast<double>((config_.main.layers + config_.fgram.layers) *
                                     (config_.main.ffw + 4 * config_.main.width));
};

std::vector<float> all_gradients(const SconeModel& model) {
  std::vector<float> values;
  for (const ParameterSet* set : {&model.main_parameters, &model.fgram_parameters}) {
    const auto gradients = set->flat_gradients().span<float>();
    values.insert(values.end(), gradients.begin(), gradients.end());
  }
  return values;
}

TEST_P(ModelTest, LossIsTheNaiveReference) {
  SconeModel model(config_, batch_, 3);
  std::vector<float> losses(batch_.tokens.size(), -1.0F);
  const double total = model.forward(batch_, losses);
  reference::Values expected;
  const double expected_total =
      reference::loss(config_, reference::to_double(model.main_parameters, model.fgram_parameters),
                      batch_, &expected);
  double worst = 0;
  for (std::size_t i = 0; i < losses.size(); ++i) {
    worst = worse(worst, std::abs(losses[i] - expected[i]) / (1 + std::abs(expected[i])));
  }
  std::printf("loss %.6f, largest relative error of a position %.2e\n", total, worst);
  EXPECT_LT(worst, kEpsilon * path_);
  EXPECT_NEAR(total, expected_total, expected_total * kEpsilon * path_);
  EXPECT_EQ(model.forward_backward(batch_, 1.0F), total);
}

TEST_P(ModelTest, RowsAreEachFgramRunAlone) {
  SconeModel model(config_, batch_, 3);
  model.fgram->forward(model.nodes(), model.rows);
  if (model.nodes().size() > config_.fgram_chunk_nodes) {
    EXPECT_GT(model.fgram->nodes_computed(), model.nodes().size()) << "no chunk repeats a node";
  }
  const auto parameters = reference::to_double(model.main_parameters, model.fgram_parameters);
  for (std::int64_t node = 0; node < model.nodes().size(); ++node) {
    std::vector<std::int32_t> tokens;
    for (std::int32_t at = static_cast<std::int32_t>(node); at >= 0;
         at = model.parent[static_cast<std::size_t>(at)]) {
      tokens.insert(tokens.begin(), model.token[static_cast<std::size_t>(at)]);
    }
    const auto expected = reference::fgram_row(config_, parameters, tokens);
    const float* row = model.rows.data<float>() + node * config_.main.width;
    for (std::size_t j = 0; j < expected.size(); ++j) {
      ASSERT_NEAR(row[j], expected[j], kEpsilon * path_ * (1 + std::abs(expected[j]))) << node;
    }
  }
}

TEST_P(ModelTest, GradientsAreCentralDifferencesOfTheReference) {
  SconeModel model(config_, batch_, 3);
  const float scale = 0.5F;
  model.forward_backward(batch_, scale);
  auto parameters = reference::to_double(model.main_parameters, model.fgram_parameters);
  std::mt19937_64 random(11);
  double worst = 0;
  for (const ParameterSet* set : {&model.main_parameters, &model.fgram_parameters}) {
    for (std::size_t i = 0; i < set->size(); ++i) {
      const auto gradients = set->gradient(i).span<float>();
      double largest = 0;
      for (const float gradient : gradients)
        largest = std::max(largest, std::abs(double{gradient}));
      // Position embeddings beyond the longest path of this batch have none.
      EXPECT_GT(largest, 0.0) << set->spec(i).name;
      for (int sample = 0; sample < 6; ++sample) {
        const std::size_t at = random() % gradients.size();
        double& value = parameters.at(set->spec(i).name)[at];
        const double saved = value, step = 1e-5;
        value = saved + step;
        const double above = reference::loss(config_, parameters, batch_);
        value = saved - step;
        const double below = reference::loss(config_, parameters, batch_);
        value = saved;
        const double expected = scale * (above - below) / (2 * step);
        const double error = std::abs(gradients[at] - expected) / (largest + 1e-3);
        worst = worse(worst, error);
        // Sums over positions, too; 1e-7: the differences' own error.
        EXPECT_LT(error, kEpsilon * path_ * 4 + 1e-7)
            << set->spec(i).name << "[" << at << "]: " << gradients[at] << ", expected "
            << expected;
      }
    }
  }
  std::printf("largest error of a gradient, relative to its parameter's largest: %.2e\n", worst);
}

TEST_P(ModelTest, RecomputationThreadsAndRepetitionChangeNoBit) {
  ModelConfig kept = config_, recomputed = config_;
  kept.fgram_recompute = FgramRecompute::none;
  recomputed.fgram_recompute = FgramRecompute::chunk;
  SconeModel a(kept, batch_, 3), b(recomputed, batch_, 3);
  const int threads = omp_get_max_threads();
  EXPECT_EQ(a.forward_backward(batch_, 1.0F), b.forward_backward(batch_, 1.0F));
  const std::vector<float> first = all_gradients(a);
  EXPECT_EQ(first, all_gradients(b));
  EXPECT_GT(a.fgram->activation_bytes(), b.fgram->activation_bytes());
  for (const int count : {1, 3}) {
    omp_set_num_threads(count);
    a.forward_backward(batch_, 1.0F);
    EXPECT_EQ(first, all_gradients(a)) << count << " threads";
  }
  omp_set_num_threads(threads);
}

TEST_P(ModelTest, OneChunkAgreesWithSmallChunks) {
  ModelConfig whole = config_;
  whole.fgram_chunk_nodes = 4096;
  SconeModel a(config_, batch_, 3), b(whole, batch_, 3);
  a.forward_backward(batch_, 1.0F);
  b.forward_backward(batch_, 1.0F);
  EXPECT_EQ(b.fgram->nodes_computed(), b.nodes().size());
  const auto first = all_gradients(a), second = all_gradients(b);
  float largest = 0;
  for (const float gradient : second) largest = std::max(largest, std::abs(gradient));
  for (std::size_t i = 0; i < first.size(); ++i) {
    ASSERT_NEAR(first[i], second[i], kEpsilon * path_ * largest);
  }
}

/// The first `count` tokens of sequence `index` of a batch as one microbatch, with its losses.
struct OneSequence {
  std::vector<std::int32_t> tokens, targets, starts, row_of_position;
  std::vector<float> losses;

  OneSequence(SconeModel& model, const reference::Batch& batch, std::int64_t index)
      : starts(static_cast<std::size_t>(batch.length)),
        losses(static_cast<std::size_t>(batch.length)) {
    const auto part = [&](const std::vector<std::int32_t>& all) {
      const auto begin = all.begin() + index * batch.length;
      return std::vector<std::int32_t>(begin, begin + batch.length);
    };
    tokens = part(batch.tokens);
    row_of_position = part(model.row_of_position);
    targets.assign(tokens.begin() + 1, tokens.end());
    targets.push_back(0);
    model.fgram->forward(model.nodes(), model.rows);
    model.main->forward({1, batch.length, tokens, targets, starts, row_of_position}, model.rows,
                        losses);
  }
  /// -log p(target of a position) from its logits.
  double loss(std::span<const float> logits, std::int64_t position) const {
    double sum = 0;
    for (const float logit : logits) sum += std::exp(double{logit});
    const auto target = static_cast<std::size_t>(targets[static_cast<std::size_t>(position)]);
    return std::log(sum) - logits[target];
  }
  DecodeSequence next(KeyValueCache& cache, std::int64_t count, std::span<float> logits) const {
    const auto done = static_cast<std::size_t>(cache.length());
    const auto size = static_cast<std::size_t>(count);
    return {&cache, std::span(tokens).subspan(done, size),
            std::span(row_of_position).subspan(done, size), logits};
  }
};

TEST_P(ModelTest, DecodingWithTheCacheAgreesWithForward) {
  SconeModel model(config_, batch_, 3);
  const OneSequence sequence(model, batch_, 0);
  KeyValueCache cache(config_.main, Device::cpu);
  std::vector<float> logits(static_cast<std::size_t>(config_.vocabulary_size));
  while (cache.length() < batch_.length) {
    const std::int64_t count = cache.length() == 0 ? 4 : 1;  // a prompt, then token by token
    const DecodeSequence next = sequence.next(cache, count, logits);
    model.main->decode(std::span(&next, 1), model.rows);
    const float expected = sequence.losses[static_cast<std::size_t>(cache.length() - 1)];
    EXPECT_NEAR(sequence.loss(logits, cache.length() - 1), expected,
                kEpsilon * path_ * (1 + expected));
  }
  cache.clear();
  const DecodeSequence again = sequence.next(cache, batch_.length, logits);
  model.main->decode(std::span(&again, 1), model.rows);
  EXPECT_NEAR(sequence.loss(logits, batch_.length - 1), sequence.losses.back(),
              kEpsilon * path_ * (1 + sequence.losses.back()));
}

// Sequences of different pasts, ragged pieces and more tokens at once than a pass takes.
TEST_P(ModelTest, DecodingABatchIsEachSequenceAlone) {
  SconeModel model(config_, batch_, 3);
  MainModel small(config_, model.main_parameters, cpu_backend(), {.max_positions = 5});
  std::vector<OneSequence> sequences;
  for (const std::int64_t index : {0, 1, 0, 1}) sequences.emplace_back(model, batch_, index);
  const auto width = static_cast<std::size_t>(config_.vocabulary_size);
  std::mt19937 random(7);
  for (MainModel* main : {model.main.get(), &small}) {
    std::vector<KeyValueCache> caches;
    for (std::size_t i = 0; i < sequences.size(); ++i)
      caches.emplace_back(config_.main, Device::cpu, DType::fp32, batch_.length);
    std::vector<std::vector<float>> logits(sequences.size(), std::vector<float>(width));
    int compared = 0;
    while (true) {
      std::vector<DecodeSequence> batch;
      std::vector<std::size_t> used;
      for (std::size_t i = 0; i < sequences.size(); ++i) {
        const std::int64_t left = batch_.length - caches[i].length();
        const std::int64_t count = std::min<std::int64_t>(left, random() % 4);
        if (count == 0) continue;
        const bool wanted = random() % 4 != 0 || count == left;
        batch.push_back(sequences[i].next(
            caches[i], count, wanted ? std::span<float>(logits[i]) : std::span<float>()));
        if (wanted) used.push_back(i);
      }
      main->decode(batch, model.rows);
      for (const std::size_t i : used) {
        const std::int64_t position = caches[i].length() - 1;
        const float expected = sequences[i].losses[static_cast<std::size_t>(position)];
        EXPECT_NEAR(sequences[i].loss(logits[i], position), expected,
                    kEpsilon * path_ * (1 + expected))
            << "sequence " << i << ", position " << position;
        ++compared;
      }
      if (std::all_of(caches.begin(), caches.end(),
                      [&](const auto& cache) { return cache.length() == batch_.length; }))
        break;
    }
    EXPECT_GT(compared, 8);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, ModelTest, ::testing::ValuesIn(model_cases()),
                         [](const auto& instance) { return instance.param.name; });

TEST(MainModelInput, DecodingRefusesWhatDoesNotFit) {
  const ModelConfig config = model_cases().front().config;
  const reference::Batch batch = random_batch(config, 1);
  SconeModel model(config, batch, 1);
  KeyValueCache cache(config.main, Device::cpu, DType::fp32, 3);
  EXPECT_EQ(cache.capacity(), 3);
  EXPECT_EQ(KeyValueCache(config.main, Device::cpu).capacity(), config.main.context);
  const std::vector<std::int32_t> tokens = {1, 2, 3, 4}, beyond = {17}, no_row = {-1};
  std::vector<float> logits(17), few(16);
  const auto decode = [&](std::vector<DecodeSequence> sequences) {
    model.main->decode(sequences, model.rows);
  };
  EXPECT_THROW(decode({{&cache, tokens, {}, logits}}), std::out_of_range);
  EXPECT_THROW(decode({{&cache, beyond, {}, logits}}), std::out_of_range);
  EXPECT_THROW(decode({{&cache, {}, {}, logits}}), std::invalid_argument);
  const auto three = std::span(tokens).first(3);
  EXPECT_THROW(decode({{&cache, three, no_row, logits}}), std::invalid_argument);
  EXPECT_THROW(decode({{&cache, three, {}, few}}), std::invalid_argument);
  const auto one = std::span(tokens).first(1);
  EXPECT_THROW(decode({{&cache, one, {}, logits}, {&cache, one, {}, {}}}), std::invalid_argument);
  EXPECT_EQ(cache.length(), 0);
  decode({{&cache, three, {}, logits}});
  EXPECT_EQ(cache.length(), 3);
  EXPECT_THROW(decode({{&cache, one, {}, logits}}), std::out_of_range);
}

TEST(MainModelInput, OutOfRangeIdsAreRefused) {
  const ModelConfig config = model_cases().front().config;
  reference::Batch batch = random_batch(config, 1);
  SconeModel model(config, batch, 1);
  batch.tokens[3] = 17;
  EXPECT_THROW(model.forward(batch), std::out_of_range);
  batch.tokens[3] = 0;
  batch.attention_start[3] = 4;
  EXPECT_THROW(model.forward(batch), std::out_of_range);
}

}  // namespace
}  // namespace scone

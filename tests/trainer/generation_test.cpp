#include "trainer/generation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <stdexcept>
#include <thread>

#include "model/ops/ops.h"
#include "parallel/error.h"

namespace scone {
namespace {

constexpr std::int64_t kVocabulary = 29, kContext = 48, kWidth = 16;
constexpr int kLongest = 3;

/// 2-grams whose sum is even and 3-grams that begin with one and sum to a multiple of 3.
class SumMatcher final : public FgramMatcher {
 public:
  std::int64_t size() const override { return kVocabulary * kVocabulary * (kVocabulary + 1); }
  int max_length() const override { return kLongest; }
  const std::string& tokenizer_fingerprint() const override { return name_; }
  std::string fingerprint() const override { return name_; }
  void match(std::span<const std::int32_t> tokens, std::span<std::int64_t> ids) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      ids[i] = -1;
      if (i >= 1 && (tokens[i] + tokens[i - 1]) % 2 == 0)
        ids[i] = tokens[i - 1] * kVocabulary + tokens[i];
      if (i >= 2 && (tokens[i - 1] + tokens[i - 2]) % 2 == 0 &&
          (tokens[i] + tokens[i - 1] + tokens[i - 2]) % 3 == 0)
        ids[i] = ((tokens[i - 2] + 1) * kVocabulary + tokens[i - 1]) * kVocabulary + tokens[i];
    }
  }
  void match(std::span<const std::int32_t>, std::span<std::int64_t>,
             std::span<std::uint8_t>) const override {
    throw std::logic_error("generation needs no lengths");
  }
  std::size_t match_of_lengths(std::span<const std::int32_t>, std::span<const std::uint8_t>,
                               std::span<std::int64_t>) const override {
    throw std::logic_error("generation has no lengths");
  }

 private:
  std::string name_ = "sums";
};

/// A row of numbers that follow from the id; counts the calls of other threads than the test's.
class NumberSource final : public EmbeddingSource {
 public:
  void rows(std::span<const std::int64_t> ids, const Tensor& out) override {
    ASSERT_TRUE(std::is_sorted(ids.begin(), ids.end(), std::less_equal<>()) && !ids.empty());
    if (std::this_thread::get_id() != own_) ++calls_elsewhere;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      std::mt19937 random(static_cast<std::uint32_t>(ids[i]));
      if (ids[i] == fails_at) throw std::runtime_error("a row that cannot be read");
      for (float& value : out.rows(static_cast<std::int64_t>(i), 1).span<float>())
        value = static_cast<float>(random() % 1000) / 2000.0F - 0.25F;
      if (ids[i] == damaged)
        out.rows(static_cast<std::int64_t>(i), 1).span<float>()[3] =
            std::numeric_limits<float>::quiet_NaN();
    }
  }
  std::atomic<int> calls_elsewhere = 0;
  std::int64_t fails_at = -1, damaged = -1;

 private:
  std::thread::id own_ = std::this_thread::get_id();
};

/// A main model of random weights with a table, as a bundle is loaded.
struct TableModel : LoadedModel {
  TableModel() {
    config.vocabulary_size = kVocabulary;
    config.main = {.width = kWidth, .layers = 2, .heads = 2, .ffw = 32, .context = kContext};
    config.fgram = config.main;
    main_parameters =
        std::make_unique<ParameterSet>(main_parameter_specs(config), Device::cpu, false);
    std::mt19937 random(5);
    std::normal_distribution<float> normal(0.0F, 0.3F);
    for (float& value : main_parameters->flat_values().span<float>()) value = normal(random);
    main_model = std::make_unique<MainModel>(config, *main_parameters, cpu_backend(),
                                             MainModelOptions{.max_positions = 20});
    matcher = std::make_unique<SumMatcher>();
    source = std::make_unique<NumberSource>();
  }
  NumberSource& numbers() const { return dynamic_cast<NumberSource&>(*source); }
};

std::vector<std::vector<std::int32_t>> prompts_of_lengths(const std::vector<std::size_t>& lengths) {
  std::mt19937 random(3);
  std::vector<std::vector<std::int32_t>> prompts;
  for (const std::size_t length : lengths) {
    prompts.emplace_back(length);
    for (std::int32_t& token : prompts.back())
      token = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(kVocabulary));
  }
  return prompts;
}

/// By the definition: the whole sequence through forward() anew for each token; the most probable
/// token is the one whose loss as a target is least.
std::vector<std::int32_t> greedy_by_forward(TableModel& model, std::vector<std::int32_t> tokens,
                                            std::int64_t max_tokens) {
  MainModel whole(model.config, *model.main_parameters, cpu_backend(), {.max_positions = kContext});
  const std::size_t prompt = tokens.size();
  for (std::int64_t drawn = 0; drawn < max_tokens && std::ssize(tokens) < kContext; ++drawn) {
    std::vector<std::int64_t> ids(tokens.size());
    model.matcher->match(tokens, ids);
    const Tensor rows = Tensor::zeros({std::ssize(tokens), kWidth});
    std::vector<std::int32_t> row_of(tokens.size(), -1), starts(tokens.size(), 0);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] < 0) continue;
      row_of[i] = static_cast<std::int32_t>(i);
      model.source->rows(std::span(&ids[i], 1), rows.rows(static_cast<std::int64_t>(i), 1));
    }
    std::int32_t best = 0;
    float least = std::numeric_limits<float>::infinity();
    for (std::int32_t token = 0; token < kVocabulary; ++token) {
      std::vector<std::int32_t> targets(tokens.size(), -1);
      targets.at(tokens.size() - 1) = token;
      std::vector<float> losses(tokens.size());
      whole.forward({1, std::ssize(tokens), tokens, targets, starts, row_of}, rows, losses);
      if (losses.back() < least) {
        least = losses.back();
        best = token;
      }
    }
    tokens.push_back(best);
  }
  return {tokens.begin() + static_cast<std::ptrdiff_t>(prompt), tokens.end()};
}

TEST(Generation, GreedyTokensAreThoseOfTheWholeSequenceAnew) {
  TableModel model;
  const auto prompts = prompts_of_lengths({1, 9, 30});
  std::vector<std::vector<std::int32_t>> expected;
  for (const auto& prompt : prompts) expected.push_back(greedy_by_forward(model, prompt, 25));
  EXPECT_EQ(expected[2].size(), 18U) << "the context ends it";
  for (const std::int64_t chunk : {1, 7, 1000}) {
    const Generation made = generate(
        model, prompts, {.max_tokens = 25, .sampling = {.temperature = 0}, .prefill_chunk = chunk});
    EXPECT_EQ(made.tokens, expected) << "prefill in chunks of " << chunk;
  }
}

// Of different lengths, more than fit the batch, some ending early; drawn, each with its own seed.
TEST(Generation, ABatchIsEachSequenceAlone) {
  TableModel model;
  const auto prompts = prompts_of_lengths({5, 1, 48, 12, 31, 2, 2, 40});
  GenerationOptions options{.max_tokens = 30, .sampling = {.seed = 40}};
  const std::int32_t end = generate(model, prompts, options).tokens[0].at(10);
  options.end_of_document = end;
  std::vector<std::vector<std::int32_t>> expected;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    GenerationOptions alone = options;
    alone.sampling.seed += i;
    expected.push_back(generate(model, std::span(&prompts[i], 1), alone).tokens.at(0));
    total += std::ssize(expected.back());
    EXPECT_THAT(expected.back(), ::testing::Not(::testing::Contains(end)));
  }
  EXPECT_TRUE(expected[2].empty()) << "no room behind the prompt";
  EXPECT_GT(total, 40);
  int early = 0;
  for (std::size_t i = 0; i < prompts.size(); ++i)
    early +=
        std::ssize(expected[i]) < std::min<std::int64_t>(30, kContext - std::ssize(prompts[i]));
  EXPECT_GT(early, 0) << "no sequence meets the end of its document";
  for (const std::int64_t batch : {1, 3, 8}) {
    for (const std::int64_t chunk : {1, 7, 1000}) {
      options.batch = batch;
      options.prefill_chunk = chunk;
      std::vector<std::vector<std::int32_t>> streamed(prompts.size());
      const Generation made = generate(
          model, prompts, options,
          [&](std::size_t sequence, std::int32_t token) { streamed[sequence].push_back(token); });
      EXPECT_EQ(made.tokens, expected) << "batch " << batch << ", chunk " << chunk;
      EXPECT_EQ(streamed, expected);
      EXPECT_EQ(made.times.new_tokens, total);
      EXPECT_EQ(made.times.prompt_tokens, 5 + 1 + 48 + 12 + 31 + 2 + 2 + 40);
      EXPECT_GT(made.times.decode_seconds, 0);
      EXPECT_GT(made.times.prefill_seconds, 0);
    }
  }
}

TEST(Generation, ATableIsReadAheadOnAnotherThreadAndItsErrorsArrive) {
  TableModel model;
  const auto prompts = prompts_of_lengths({30, 9});
  GenerationOptions options{.max_tokens = 0, .prefill_chunk = 4};
  EXPECT_EQ(generate(model, prompts, options).times.steps, 0);
  EXPECT_GE(model.numbers().calls_elsewhere, 7) << "chunks after the first, of 10";
  std::vector<std::int64_t> ids(30);
  model.matcher->match(prompts[0], ids);
  const auto last = std::find_if(ids.rbegin(), ids.rend(), [](auto id) { return id >= 0; });
  model.numbers().fails_at = *last;
  EXPECT_THROW(generate(model, prompts, options), std::runtime_error);
}

TEST(Generation, ADamagedRowEndsItInsteadOfATokenMadeUp) {
  TableModel model;
  const auto prompts = prompts_of_lengths({30});
  std::vector<std::int64_t> ids(30);
  model.matcher->match(prompts[0], ids);
  model.numbers().damaged = *std::find_if(ids.begin(), ids.end(), [](auto id) { return id >= 0; });
  for (const double temperature : {0.0, 1.0}) {
    int drawn = 0;
    try {
      generate(model, prompts, {.max_tokens = 3, .sampling = {.temperature = temperature}},
               [&](std::size_t, std::int32_t) { ++drawn; });
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr("the logit of token 0 is nan"));
    }
    EXPECT_EQ(drawn, 0);
  }
}

TEST(Sampler, RefusesLogitsThatNoProbabilitiesFollowFrom) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = 0}, SamplingOptions{}, SamplingOptions{.top_k = 2},
        SamplingOptions{.top_p = 0.5}}) {
    for (std::size_t place = 0; place < 4; ++place) {
      for (const float bad : {kNan, kInfinity}) {
        std::vector<float> logits = {1, 2, 3, 0};
        logits[place] = bad;
        EXPECT_THROW(Sampler(options).draw(logits), std::runtime_error) << place << " " << bad;
      }
    }
    EXPECT_THROW(Sampler(options).draw(std::vector<float>(4, -kInfinity)), std::runtime_error);
    EXPECT_THROW(Sampler(options).draw({}), std::runtime_error);
    // A token ruled out by minus infinity is none that is drawn.
    Sampler sampler(options);
    const std::vector<float> one = {-kInfinity, -kInfinity, 5, -kInfinity};
    for (int i = 0; i < 100; ++i) EXPECT_EQ(sampler.draw(one), 2);
  }
}

const std::vector<float> kFourLogits = {0.0F, 3.0F, 1.0F, 2.0F};
const std::vector<std::size_t> kByLogit = {1, 3, 2, 0};

/// Draws 20,000 tokens of kFourLogits: those of the `kept` largest logits occur by softmax(logits /
/// temperature), within five standard deviations, and the others never.
void expect_draws(const SamplingOptions& options, std::size_t kept) {
  SCOPED_TRACE(::testing::Message() << "temperature " << options.temperature << ", top-k "
                                    << options.top_k << ", top-p " << options.top_p);
  Sampler sampler(options);
  const auto weight = [&](std::size_t i) {
    return std::exp(kFourLogits[kByLogit[i]] / options.temperature);
  };
  double sum = 0;
  for (std::size_t i = 0; i < kept; ++i) sum += weight(i);
  std::vector<int> counts(4);
  for (int i = 0; i < 20000; ++i) ++counts[static_cast<std::size_t>(sampler.draw(kFourLogits))];
  for (std::size_t i = 0; i < 4; ++i) {
    const double p = i < kept ? weight(i) / sum : 0;
    EXPECT_NEAR(counts[kByLogit[i]], 20000 * p, 5 * std::sqrt(20000 * p * (1 - p)))
        << "token " << kByLogit[i];
  }
}

// Of the probabilities 0.644, 0.237, 0.087, 0.032.
TEST(Sampler, TopPKeepsTheFewestTokensThatReachIt) {
  const std::vector<std::pair<double, std::size_t>> cases = {
      {0.01, 1}, {0.64, 1}, {0.65, 2}, {0.88, 2}, {0.89, 3}, {0.96, 3}, {0.97, 4}, {1.0, 4}};
  for (const auto& [top_p, kept] : cases) expect_draws({.top_p = top_p, .seed = 4}, kept);
}

TEST(Sampler, TemperatureDividesTheLogits) {
  for (const double temperature : {0.5, 1.0, 2.0, 10.0})
    expect_draws({.temperature = temperature, .seed = 5}, 4);
  // Top-p is of the probabilities at this temperature, among the top k: 0.867, 0.117 at 0.5;
  // 0.506, 0.307, 0.186 of three at 2.
  expect_draws({.temperature = 0.5, .top_p = 0.8}, 1);
  expect_draws({.temperature = 0.5, .top_p = 0.9}, 2);
  expect_draws({.temperature = 2, .top_k = 3, .top_p = 0.5}, 1);
  expect_draws({.temperature = 2, .top_k = 3, .top_p = 0.8}, 2);
  expect_draws({.temperature = 2, .top_k = 3, .top_p = 0.82}, 3);
}

// So that greedy and top-k 1 agree.
TEST(Sampler, OfEqualLogitsTheLowestTokenIsFirst) {
  const std::vector<float> logits = {1, 4, 4, 4, 2};
  EXPECT_EQ(Sampler({.temperature = 0}).draw(logits), 1);
  Sampler one({.top_k = 1}), little({.top_p = 0.1}), two({.top_k = 2});
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(one.draw(logits), 1);
    EXPECT_EQ(little.draw(logits), 1);
    EXPECT_LE(two.draw(logits), 2);
  }
}

TEST(Generation, TheLastTokenIsNotComputed) {
  TableModel model;
  for (const std::int64_t tokens : {1, 2, 7}) {
    const Generation made = generate(model, prompts_of_lengths({5, 9}), {.max_tokens = tokens});
    EXPECT_EQ(made.tokens[1].size(), static_cast<std::size_t>(tokens));
    EXPECT_EQ(made.times.steps, tokens - 1);
  }
  EXPECT_EQ(generate(model, prompts_of_lengths({46}), {.max_tokens = 9}).times.steps, 1)
      << "the context has room for two";
}

TEST(Generation, AModelWithoutFgrams) {
  TableModel model;
  const auto prompts = prompts_of_lengths({6, 3});
  const GenerationOptions options{.max_tokens = 12, .sampling = {.temperature = 0}};
  const auto with_table = generate(model, prompts, options).tokens;
  model.matcher.reset();
  model.source.reset();
  const auto plain = generate(model, prompts, options).tokens;
  EXPECT_EQ(plain[0].size(), 12U);
  EXPECT_NE(plain, with_table);
}

TEST(Generation, RefusesWhatItCannotDo) {
  TableModel model;
  const auto refuses = [&](const std::vector<std::size_t>& lengths,
                           const GenerationOptions& options, const std::string& text) {
    try {
      generate(model, prompts_of_lengths(lengths), options);
      FAIL() << "nothing was thrown";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), ::testing::HasSubstr(text));
    }
  };
  refuses({3, 0}, {}, "prompt 2 has no tokens");
  refuses({49}, {}, "the prompt has 49 tokens, the model's context is 48");
  refuses({3}, {.batch = 0}, "batch 0 (>= 1)");
  refuses({3}, {.prefill_chunk = 0}, "prefill chunk 0 (>= 1)");
  refuses({3}, {.sampling = {.top_p = 0}}, "top-p 0");
}

}  // namespace
}  // namespace scone

// Both models with their layers cut over the ranks of a group, against one rank.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>

#include "model_fixture.h"
#include "worst_error.h"

namespace scone {
namespace {

constexpr double kEpsilon = std::numeric_limits<float>::epsilon();

/// The cases of the model tests with heads and ffw that 2, 3 and 4 ranks divide. The vocabulary of
/// 17 is divided by none of them.
std::vector<ModelCase> cuttable_cases() {
  std::vector<ModelCase> cases = model_cases();
  for (ModelCase& model_case : cases) {
    for (TransformerConfig* config : {&model_case.config.main, &model_case.config.fgram}) {
      config->width = 24;
      config->heads = 12;
      config->ffw = 24;
    }
  }
  return cases;
}

/// The batch's first sequences, and of them the first positions.
reference::Batch cut(const reference::Batch& batch, std::int64_t sequences, std::int64_t length) {
  reference::Batch result;
  result.sequences = sequences;
  result.length = length;
  for (std::int64_t s = 0; s < sequences; ++s) {
    const auto append = [&](auto& to, const auto& from) {
      const auto begin = from.begin() + s * batch.length;
      to.insert(to.end(), begin, begin + length);
    };
    append(result.tokens, batch.tokens);
    append(result.targets, batch.targets);
    append(result.attention_start, batch.attention_start);
    append(result.match, batch.match);
  }
  return result;
}

/// This rank's part of parameters that one rank holds whole.
ParameterSet part_of(const ParameterSet& whole, const Part& part) {
  std::vector<ParameterSpec> specs;
  for (std::size_t i = 0; i < whole.size(); ++i) specs.push_back(whole.spec(i));
  ParameterSet set(specs, Device::cpu, true, part);
  for (std::size_t i = 0; i < set.size(); ++i)
    for_each_run(specs[i].shape, specs[i].sharding, part,
                 [&](std::int64_t global, std::int64_t local, std::int64_t count) {
                   std::copy_n(whole.value(i).data<float>() + global, count,
                               set.value(i).data<float>() + local);
                 });
  return set;
}

double largest_of(const Tensor& tensor) {
  double largest = 0;
  for (const float value : tensor.span<float>())
    largest = std::max(largest, std::abs(double{value}));
  return largest;
}

/// Largest difference relative to the largest entry, or, where that is next to nothing, to
/// `floor`.
double deviation(const Tensor& found, const Tensor& expected, double floor) {
  const auto a = found.span<float>(), b = expected.span<float>();
  if (a.size() != b.size()) return INFINITY;
  double worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) worst = worse(worst, std::abs(double{a[i]} - b[i]));
  return worst == 0 ? 0 : worst / std::max(largest_of(expected), floor);
}

/// Expects this group's gradients, gathered, to be those of one rank. Returns the deviation.
double check_gradients(const ParameterSet& own, const ParameterSet& whole, Communicator& group,
                       bool sequence_parallel, double tolerance) {
  const double floor = 0.01 * largest_of(whole.flat_gradients());
  double worst = 0;
  for (std::size_t i = 0; i < own.size(); ++i) {
    const ParameterSpec& spec = own.spec(i);
    // As DistributedOptimizer does.
    if (sequence_parallel && spec.sums_rows)
      group.all_reduce(own.gradient(i).span<float>(), ReduceOp::sum);
    const Tensor gathered = gather_shards(spec, own.gradient(i), group);
    const double of_parameter = deviation(gathered, whole.gradient(i), floor);
    EXPECT_LT(of_parameter, tolerance) << spec.name << " on rank " << group.rank();
    worst = worse(worst, of_parameter);
    if (spec.replicated()) {
      const auto bits = group.all_gather(std::as_bytes(own.gradient(i).span<float>()));
      for (const auto& theirs : bits) EXPECT_EQ(theirs, bits.front()) << spec.name;
    } else if (spec.sharding.sections == 1 && spec.sharding.axis == 0) {
      const std::int64_t used = slice_of(spec.shape[0], own.part()).count;
      const Tensor& gradient = own.gradient(i);
      EXPECT_EQ(largest_of(gradient.rows(used, gradient.dim(0) - used)), 0)
          << "padding of " << spec.name;
    }
  }
  return worst;
}

class TensorParallelTest : public ::testing::TestWithParam<ModelCase> {
 protected:
  ModelConfig config_ = GetParam().config;
  reference::Batch batch_ = random_batch(config_, 5);
  double tolerance_ = kEpsilon * static_cast<double>((config_.main.layers + config_.fgram.layers) *
                                                     (config_.main.ffw + 4 * config_.main.width));
};

/// Rows are shared out among the ranks: row i is in the share of rank i % ranks.
struct SharedRows {
  SharedRows(const SconeModel& whole, const Part& part) : row_of_position(whole.row_of_position) {
    const std::int64_t width = whole.config.main.width;
    std::vector<std::int32_t> place(static_cast<std::size_t>(whole.rows.dim(0)), kRowElsewhere);
    for (std::int32_t row = part.index; row < whole.rows.dim(0); row += part.count) {
      place[static_cast<std::size_t>(row)] = static_cast<std::int32_t>(own.size());
      own.push_back(row);
    }
    for (std::int32_t& row : row_of_position)
      if (row >= 0) row = place[static_cast<std::size_t>(row)];
    const auto count = std::max<std::int64_t>(1, static_cast<std::int64_t>(own.size()));
    rows = Tensor::zeros({count, width});
    gradients = Tensor::zeros({count, width});
    for (std::size_t i = 0; i < own.size(); ++i)
      cpu_backend().copy(whole.rows.rows(own[i], 1), rows.rows(static_cast<std::int64_t>(i), 1));
  }
  std::vector<std::int32_t> row_of_position;
  std::vector<std::int64_t> own;  // rows of this rank
  Tensor rows, gradients;
};

void check_main_model(Communicator& group, const SconeModel& whole, const reference::Batch& batch,
                      bool sequence_parallel, Recompute recompute, double expected_loss,
                      std::span<const float> expected_losses, double tolerance) {
  const Part part{group.rank(), group.size()};
  ParameterSet parameters = part_of(whole.main_parameters, part);
  // More room than this batch takes: the shares are of its rows, not of the room.
  const std::int64_t room = batch.sequences * batch.length + 5;
  MainModel model(whole.config, parameters, cpu_backend(),
                  {.max_positions = room,
                   .training = true,
                   .tp = TensorParallel(group, sequence_parallel),
                   .recompute = recompute});
  SharedRows shared(whole, part);
  MicroBatch microbatch = whole.microbatch(batch);
  microbatch.row_of_position = shared.row_of_position;
  std::vector<float> losses(batch.tokens.size(), -1.0F);
  const double loss = model.forward(microbatch, shared.rows, losses);
  EXPECT_NEAR(loss, expected_loss, tolerance * (1 + expected_loss));
  for (std::size_t i = 0; i < losses.size(); ++i)
    EXPECT_NEAR(losses[i], expected_losses[i], tolerance * (1 + expected_losses[i]));
  EXPECT_EQ(model.forward_backward(microbatch, shared.rows, shared.gradients, 0.5F), loss);
  const double worst =
      check_gradients(parameters, whole.main_parameters, group, sequence_parallel, tolerance);
  const double floor = 0.01 * largest_of(whole.row_gradients);
  for (std::size_t i = 0; i < shared.own.size(); ++i)
    EXPECT_LT(deviation(shared.gradients.rows(static_cast<std::int64_t>(i), 1),
                        whole.row_gradients.rows(shared.own[i], 1), floor),
              tolerance);
  if (group.rank() == 0 && batch.sequences * batch.length == 26 && recompute == Recompute::none)
    std::printf("%d ranks%s: loss %.1e, gradients %.1e, allowed %.1e\n", group.size(),
                sequence_parallel ? ", sequence parallel" : "", std::abs(loss / expected_loss - 1),
                worst, tolerance);
}

TEST_P(TensorParallelTest, MainModel) {
  // Positions that the ranks do not divide, and fewer than ranks.
  const std::array<std::int64_t, 2> sizes[] = {{2, 13}, {1, 13}, {2, 1}, {1, 1}, {1, 3}};
  for (const auto& [sequences, length] : sizes) {
    const reference::Batch batch = cut(batch_, sequences, length);
    SconeModel whole(config_, batch, 3);
    std::vector<float> losses(batch.tokens.size());
    cpu_backend().zero(whole.main_parameters.flat_gradients());
    whole.fgram->forward(whole.nodes(), whole.rows);
    whole.main->forward(whole.microbatch(batch), whole.rows, losses);
    const double loss = whole.main->forward_backward(whole.microbatch(batch), whole.rows,
                                                     whole.row_gradients, 0.5F);
    for (const int ranks : {2, 3, 4})
      for (const bool sequence_parallel : {false, true})
        for (const Recompute recompute :
             {Recompute::none, Recompute::attention, Recompute::block}) {
          SCOPED_TRACE(fmt::format(
              "{} x {} positions, {} ranks, sequence parallel {}, recompute {}", sequences, length,
              ranks, sequence_parallel, static_cast<int>(recompute)));
          run_as_threads(ranks, [&](Communicator& group) {
            omp_set_num_threads(1);
            check_main_model(group, whole, batch, sequence_parallel, recompute, loss, losses,
                             tolerance_);
          });
        }
  }
}

void check_fgram_model(Communicator& group, const SconeModel& whole, bool sequence_parallel,
                       FgramRecompute recompute, double tolerance) {
  ModelConfig config = whole.config;
  config.fgram_recompute = recompute;
  ParameterSet parameters = part_of(whole.fgram_parameters, {group.rank(), group.size()});
  const TokenTable table{whole_token_table(whole.main_parameters).values,
                         Tensor::zeros({config.vocabulary_size, config.main.width})};
  FgramModel model(config, parameters, table, cpu_backend(), true,
                   TensorParallel(group, sequence_parallel));
  const Tensor rows = Tensor::zeros(whole.rows.shape());
  model.forward(whole.nodes(), rows);
  EXPECT_LT(deviation(rows, whole.rows, 0.01), tolerance);
  model.backward(whole.nodes(), whole.row_gradients);
  const double worst =
      check_gradients(parameters, whole.fgram_parameters, group, sequence_parallel, tolerance);
  // Each node's gradient counts once in the group.
  group.all_reduce(table.gradients.span<float>(), ReduceOp::sum);
  EXPECT_LT(deviation(table.gradients, whole_token_table(whole.main_parameters).gradients, 0),
            tolerance);
  if (group.rank() == 0 && whole.nodes().size() > 20)
    std::printf("%d ranks%s: gradients %.1e, allowed %.1e\n", group.size(),
                sequence_parallel ? ", sequence parallel" : "", worst, tolerance);
}

TEST_P(TensorParallelTest, FgramModel) {
  for (const auto& [sequences, length] :
       std::vector<std::array<std::int64_t, 2>>{{2, 13}, {1, 6}, {1, 3}}) {
    const reference::Batch batch = cut(batch_, sequences, length);
    SconeModel whole(config_, batch, 3);
    if (whole.nodes().size() == 0) continue;
    cpu_backend().zero(whole.main_parameters.flat_gradients());
    cpu_backend().zero(whole.fgram_parameters.flat_gradients());
    whole.fgram->forward(whole.nodes(), whole.rows);
    counter_normal(9, "row gradients", 0, whole.row_gradients.span<float>());
    whole.fgram->backward(whole.nodes(), whole.row_gradients);
    for (const int ranks : {2, 3, 4})
      for (const bool sequence_parallel : {false, true})
        for (const FgramRecompute recompute : {FgramRecompute::none, FgramRecompute::chunk}) {
          SCOPED_TRACE(fmt::format("{} nodes, {} ranks, sequence parallel {}, recompute {}",
                                   whole.nodes().size(), ranks, sequence_parallel,
                                   static_cast<int>(recompute)));
          run_as_threads(ranks, [&](Communicator& group) {
            omp_set_num_threads(1);
            check_fgram_model(group, whole, sequence_parallel, recompute, tolerance_);
          });
        }
  }
}

TEST_P(TensorParallelTest, RecomputationChangesNoBit) {
  config_.main.layers = 3;
  SconeModel kept(config_, batch_, 3);
  kept.forward_backward(batch_, 0.5F);
  std::size_t bytes = kept.main->activation_bytes();
  for (const Recompute recompute : {Recompute::attention, Recompute::block}) {
    SconeModel other(config_, batch_, 3);
    other.main = std::make_unique<MainModel>(
        config_, other.main_parameters, cpu_backend(),
        MainModelOptions{.max_positions = batch_.sequences * batch_.length,
                         .training = true,
                         .recompute = recompute});
    EXPECT_LT(other.main->activation_bytes(), bytes);
    bytes = other.main->activation_bytes();
    for (int repeat = 0; repeat < 2; ++repeat) {
      other.forward_backward(batch_, 0.5F);
      EXPECT_TRUE(std::ranges::equal(kept.main_parameters.flat_gradients().span<float>(),
                                     other.main_parameters.flat_gradients().span<float>()));
      EXPECT_TRUE(
          std::ranges::equal(kept.row_gradients.span<float>(), other.row_gradients.span<float>()));
    }
  }
}

/// What was said to be final, and what it was then.
struct Final {
  std::int64_t offset;
  std::vector<float> gradients;  // from there on
};

std::function<void(std::int64_t)> recorder(const ParameterSet& parameters,
                                           std::vector<Final>& calls) {
  return [&](std::int64_t offset) {
    const auto all = parameters.flat_gradients().span<float>();
    calls.push_back({offset, {all.begin() + offset, all.end()}});
  };
}

/// Expects the offsets not to rise, and no gradient to have changed since it was said to be final.
void check_final(const ParameterSet& parameters, const std::vector<Final>& calls) {
  std::int64_t last = parameters.elements();
  for (const Final& call : calls) {
    EXPECT_LE(call.offset, last);
    last = call.offset;
    const auto now =
        parameters.flat_gradients().span<float>().subspan(static_cast<std::size_t>(call.offset));
    EXPECT_TRUE(std::ranges::equal(now, call.gradients))
        << "gradients from " << call.offset << " on changed after they were said to be final";
  }
}

TEST_P(TensorParallelTest, GradientsSaidToBeFinalAre) {
  SconeModel whole(config_, batch_, 3);
  whole.fgram->forward(whole.nodes(), whole.rows);
  for (const int ranks : {1, 3}) {
    for (const Recompute recompute : {Recompute::none, Recompute::block}) {
      run_as_threads(ranks, [&](Communicator& group) {
        omp_set_num_threads(1);
        const Part part{group.rank(), group.size()};
        ParameterSet parameters = part_of(whole.main_parameters, part);
        MainModel model(config_, parameters, cpu_backend(),
                        {.max_positions = batch_.sequences * batch_.length,
                         .training = true,
                         .tp = TensorParallel(group, true),
                         .recompute = recompute});
        SharedRows shared(whole, part);
        MicroBatch microbatch = whole.microbatch(batch_);
        microbatch.row_of_position = shared.row_of_position;
        model.forward_backward(microbatch, shared.rows, shared.gradients, 1.0F);
        std::vector<Final> calls;
        model.forward_backward(microbatch, shared.rows, shared.gradients, 1.0F,
                               recorder(parameters, calls));
        ASSERT_EQ(calls.size(), static_cast<std::size_t>(config_.main.layers) + 1);
        check_final(parameters, calls);
        EXPECT_EQ(calls.back().offset, parameters.offset(1)) << "all but the token embedding";
      });
    }
  }
}

TEST_P(TensorParallelTest, FgramGradientsSaidToBeFinalAre) {
  for (const FgramRecompute recompute : {FgramRecompute::none, FgramRecompute::chunk}) {
    config_.fgram_recompute = recompute;
    SconeModel model(config_, batch_, 3);
    ASSERT_GT(model.nodes().size(), config_.fgram_chunk_nodes);
    model.fgram->forward(model.nodes(), model.rows);
    counter_normal(9, "row gradients", 0, model.row_gradients.span<float>());
    std::vector<Final> calls;
    model.fgram->backward(model.nodes(), model.row_gradients,
                          recorder(model.fgram_parameters, calls));
    ASSERT_EQ(calls.size(), static_cast<std::size_t>(config_.fgram.layers));
    check_final(model.fgram_parameters, calls);
    // A group without nodes must make the same calls: the reductions they begin are collective.
    std::vector<Final> without_nodes;
    model.fgram->forward({}, model.rows);
    model.fgram->backward({}, model.row_gradients, recorder(model.fgram_parameters, without_nodes));
    ASSERT_EQ(without_nodes.size(), calls.size());
    for (std::size_t i = 0; i < calls.size(); ++i)
      EXPECT_EQ(without_nodes[i].offset, calls[i].offset);
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, TensorParallelTest, ::testing::ValuesIn(cuttable_cases()),
                         [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace scone

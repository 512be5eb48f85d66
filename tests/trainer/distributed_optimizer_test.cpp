#include "trainer/distributed_optimizer.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <mutex>
#include <string>

#include "worst_error.h"

namespace scone {
namespace {

constexpr int kSamples = 60;  // of a step: any data-parallel size up to 5 shares them evenly
constexpr double kLr = 0.01;

struct Layout {
  int tp = 1, dp = 1;
  bool zero = false, overlap = false, sequence_parallel = false;
  std::int64_t bucket_elements = 1 << 20;
  int ranks() const { return tp * dp; }
};

std::string name_of(const Layout& layout) {
  return fmt::format("tp {} dp {}{}{}{}, buckets of {}", layout.tp, layout.dp,
                     layout.zero ? " zero" : "", layout.overlap ? " overlap" : "",
                     layout.sequence_parallel ? " sp" : "", layout.bucket_elements);
}

/// Every way of cutting a parameter: of sizes that buckets and slices cut anywhere.
std::vector<ParameterSpec> specs() {
  return {
      {.name = "vocabulary", .shape = {37, 12}, .sharding = {.axis = 0}},
      {.name = "position", .shape = {5, 12}, .weight_decay = false},
      {.name = "gain", .shape = {12}, .weight_decay = false, .sums_rows = true},
      {.name = "qkv", .shape = {36, 12}, .sharding = {.axis = 0, .sections = 3}},
      {.name = "qkv bias",
       .shape = {36},
       .sharding = {.axis = 0, .sections = 3},
       .weight_decay = false},
      {.name = "out", .shape = {12, 12}, .sharding = {.axis = 1}},
      {.name = "out bias", .shape = {12}, .weight_decay = false},
      {.name = "final gain", .shape = {131}, .weight_decay = false, .sums_rows = true},
  };
}

std::int64_t elements_of(const ParameterSpec& spec) {
  std::int64_t elements = 1;
  for (const std::int64_t extent : spec.shape) elements *= extent;
  return elements;
}

std::vector<float> normals(const std::string& stream, const ParameterSpec& spec) {
  std::vector<float> values(static_cast<std::size_t>(elements_of(spec)));
  counter_normal(6, stream + spec.name, 0, values);
  return values;
}

/// Adds this rank's part of `global` to its shard.
void add_part(const ParameterSpec& spec, const Part& part, std::span<const float> global,
              const Tensor& shard) {
  for_each_run(spec.shape, spec.sharding, part,
               [&](std::int64_t from, std::int64_t to, std::int64_t count) {
                 for (std::int64_t i = 0; i < count; ++i)
                   shard.data<float>()[to + i] += global[static_cast<std::size_t>(from + i)];
               });
}

/// A rank's parameters and their optimizer.
class Rank {
 public:
  Rank(Communicator& world, const Layout& layout)
      : layout_(layout),
        grid_(world, layout.tp, "main"),
        parameters_(specs(), Device::cpu, true, {grid_.tensor_rank(), grid_.tensor_size()}) {
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      add_part(parameters_.spec(i), parameters_.part(), normals("value ", parameters_.spec(i)),
               parameters_.value(i));
    optimizer = std::make_unique<DistributedOptimizer>(
        parameters_, grid_, cpu_backend(),
        OptimizerSettings{.epsilon = 1e-3,
                          .weight_decay = 0.1,
                          .zero = layout.zero,
                          .sequence_parallel = layout.sequence_parallel,
                          .overlap = layout.overlap,
                          .bucket_elements = layout.bucket_elements});
  }

  /// One step (1, 2, ..) on this rank's share of the samples. Returns its share of the squared
  /// norm.
  double step(int number) {
    cpu_backend().zero(parameters_.flat_gradients());
    for (std::size_t i = parameters_.size(); i-- > 0;) {  // in the order of a backward pass
      add_gradient(number, i);
      optimizer->poll();
      if (i > 0) optimizer->gradients_final(parameters_.offset(i));
    }
    optimizer->finish_reduction();
    const double squared_norm = optimizer->squared_norm();
    optimizer->step(number, kLr, 0.5);
    return squared_norm;
  }

  const ParameterSet& parameters() const { return parameters_; }
  std::vector<Tensor> gathered(bool gradients) {
    std::vector<Tensor> result;
    for (std::size_t i = 0; i < parameters_.size(); ++i)
      result.push_back(gather_shards(parameters_.spec(i),
                                     gradients ? parameters_.gradient(i) : parameters_.value(i),
                                     grid_.tensor()));
    return result;
  }

  std::unique_ptr<DistributedOptimizer> optimizer;

 private:
  void add_gradient(int number, std::size_t i) {
    const ParameterSpec& spec = parameters_.spec(i);
    for (int sample = 0; sample < kSamples; ++sample) {
      // With sequence parallelism some gradients are sums over the rank's own rows.
      const bool partial = layout_.sequence_parallel && spec.sums_rows;
      if (sample % layout_.dp != grid_.data_rank() ||
          (partial && sample / layout_.dp % layout_.tp != grid_.tensor_rank()))
        continue;
      add_part(spec, parameters_.part(),
               normals(fmt::format("gradient {} {} ", number, sample), spec),
               parameters_.gradient(i));
    }
  }

  Layout layout_;
  ProcessGrid grid_;
  ParameterSet parameters_;
};

/// AdamW said naively, in double, on whole parameters.
struct Reference {
  std::vector<std::vector<double>> values, m, v, gradients;
  double squared_norm = 0;

  Reference() {
    for (const ParameterSpec& spec : specs()) {
      const auto start = normals("value ", spec);
      values.emplace_back(start.begin(), start.end());
      m.emplace_back(start.size(), 0.0);
    }
    v = m;
  }
  void step(int number) {
    squared_norm = 0;
    gradients.clear();
    for (std::size_t i = 0; i < values.size(); ++i) {
      const ParameterSpec spec = specs()[i];
      std::vector<double>& sum = gradients.emplace_back(values[i].size(), 0.0);
      for (int sample = 0; sample < kSamples; ++sample) {
        const auto own = normals(fmt::format("gradient {} {} ", number, sample), spec);
        for (std::size_t k = 0; k < sum.size(); ++k) sum[k] += double{own[k]};
      }
      for (std::size_t k = 0; k < sum.size(); ++k) {
        squared_norm += sum[k] * sum[k];
        const double g = 0.5 * sum[k];
        m[i][k] = 0.9 * m[i][k] + 0.1 * g;
        v[i][k] = 0.95 * v[i][k] + 0.05 * g * g;
        if (spec.weight_decay) values[i][k] -= kLr * 0.1 * values[i][k];
        values[i][k] -= kLr * m[i][k] / (1 - std::pow(0.9, number)) /
                        (std::sqrt(v[i][k] / (1 - std::pow(0.95, number))) + 1e-3);
      }
    }
  }
};

double deviation(const Tensor& found, std::span<const double> expected) {
  double worst = 0, largest = 0;
  const auto values = found.span<float>();
  if (values.size() != expected.size()) return INFINITY;
  for (std::size_t k = 0; k < expected.size(); ++k) {
    largest = std::max(largest, std::abs(expected[k]));
    worst = worse(worst, std::abs(values[k] - expected[k]));
  }
  return worst / largest;
}

std::vector<Layout> layouts() {
  std::vector<Layout> all;
  for (int dp = 1; dp <= 5; ++dp)
    for (const int tp : {1, 2, 3})
      for (const bool zero : {false, true})
        for (const bool overlap : {false, true})
          for (const std::int64_t bucket : {7, 100, 1 << 20})
            for (const bool sequence_parallel : {false, true})
              if (tp * dp <= 8) all.push_back({tp, dp, zero, overlap, sequence_parallel, bucket});
  return all;
}

// kSamples summands, and AdamW's few operations on each value.
constexpr double kTolerance = 1e-6;

TEST(DistributedOptimizer, AgreesWithPlainAdamwOnEveryLayout) {
  std::vector<Reference> expected(1);
  for (int step = 1; step <= 3; ++step) {
    expected.push_back(expected.back());
    expected.back().step(step);
  }
  double worst = 0;
  for (const Layout& layout : layouts()) {
    SCOPED_TRACE(name_of(layout));
    run_as_threads(layout.ranks(), [&](Communicator& world) {
      omp_set_num_threads(1);
      Rank rank(world, layout);
      for (int step = 1; step <= 3; ++step) {
        const double squared_norm = world.all_reduce_value(rank.step(step), ReduceOp::sum);
        const Reference& reference = expected[static_cast<std::size_t>(step)];
        EXPECT_NEAR(squared_norm / reference.squared_norm, 1, kTolerance) << name_of(layout);
        if (step > 1) continue;
        rank.optimizer->gather_gradients();
        const auto gradients = rank.gathered(true);
        for (std::size_t i = 0; i < gradients.size(); ++i)
          EXPECT_LT(deviation(gradients[i], reference.gradients[i]), 2 * kTolerance)
              << specs()[i].name;
      }
      const auto values = rank.gathered(false);
      for (std::size_t i = 0; i < values.size(); ++i) {
        const double own = deviation(values[i], expected.back().values[i]);
        EXPECT_LT(own, kTolerance) << specs()[i].name << ", " << name_of(layout);
        if (world.rank() == 0) worst = worse(worst, own);
      }
      // Padding is zero and stays so.
      const Tensor& shard = rank.parameters().value(0);
      const std::int64_t used = slice_of(37, rank.parameters().part()).count;
      for (const float value : shard.rows(used, shard.dim(0) - used).span<float>())
        EXPECT_EQ(value, 0.0F);
    });
  }
  std::printf("largest deviation of a value after 3 steps: %.1e\n", worst);
}

using Whole = std::map<std::string, Tensor>;

/// The whole tensors of a layout after two steps; expects that each element was given once.
Whole saved_after_two_steps(const Layout& layout) {
  Whole whole;
  std::map<std::string, std::vector<int>> seen;
  std::mutex mutex;
  run_as_threads(layout.ranks(), [&](Communicator& world) {
    omp_set_num_threads(1);
    Rank rank(world, layout);
    rank.step(1);
    rank.step(2);
    const std::lock_guard lock(mutex);
    for (const TensorSlice& slice : rank.optimizer->state(true)) {
      std::vector<int>& marks = seen[slice.name];
      Tensor& tensor = whole[slice.name];
      if (tensor.empty()) tensor = Tensor::zeros(slice.global_shape);
      marks.resize(static_cast<std::size_t>(tensor.elements()), 0);
      const bool matrix = slice.global_shape.size() == 2;
      const std::int64_t columns = matrix ? slice.global_shape[1] : 1;
      const std::int64_t width = matrix ? slice.values.dim(1) : 1;
      for (std::int64_t k = 0; k < slice.values.elements(); ++k) {
        const std::int64_t at =
            (slice.begin[0] + k / width) * columns + (matrix ? slice.begin[1] : 0) + k % width;
        ++marks[static_cast<std::size_t>(at)];
        tensor.data<float>()[at] = slice.values.data<float>()[k];
      }
    }
  });
  EXPECT_EQ(seen.size(), 3 * specs().size());
  for (const ParameterSpec& spec : specs())
    for (const char* kind : {"parameters/", "adam_m/", "adam_v/"})
      EXPECT_EQ(seen[kind + spec.name],
                std::vector<int>(static_cast<std::size_t>(elements_of(spec)), 1))
          << kind << spec.name;
  return whole;
}

void restore(const Whole& whole, DistributedOptimizer& optimizer) {
  for (const TensorSlice& slice : optimizer.state(false)) {
    const Tensor& tensor = whole.at(slice.name);
    const bool matrix = slice.global_shape.size() == 2;
    const std::int64_t columns = matrix ? slice.global_shape[1] : 1;
    const std::int64_t width = matrix ? slice.values.dim(1) : 1;
    for (std::int64_t k = 0; k < slice.values.elements(); ++k)
      slice.values.data<float>()[k] =
          tensor.data<float>()[(slice.begin[0] + k / width) * columns +
                               (matrix ? slice.begin[1] : 0) + k % width];
  }
}

TEST(DistributedOptimizer, StateMovesToAnyOtherLayout) {
  Reference expected;
  for (int step = 1; step <= 4; ++step) expected.step(step);
  const std::vector<Layout> few = {{},
                                   {.dp = 4, .zero = true, .bucket_elements = 100},
                                   {.tp = 2, .dp = 3, .zero = true, .bucket_elements = 7},
                                   {.tp = 3, .dp = 2, .bucket_elements = 100},
                                   {.tp = 4, .dp = 2, .zero = true},
                                   {.dp = 5, .zero = true}};
  for (const Layout& from : few) {
    SCOPED_TRACE("from " + name_of(from));
    const Whole whole = saved_after_two_steps(from);
    for (const Layout& to : few) {
      run_as_threads(to.ranks(), [&](Communicator& world) {
        omp_set_num_threads(1);
        Rank rank(world, to);
        // What this rank holds is all overwritten.
        for (float& value : rank.parameters().flat_values().span<float>()) value *= 3;
        restore(whole, *rank.optimizer);
        rank.step(3);
        rank.step(4);
        const auto values = rank.gathered(false);
        for (std::size_t i = 0; i < values.size(); ++i)
          EXPECT_LT(deviation(values[i], expected.values[i]), kTolerance)
              << specs()[i].name << ", to " << name_of(to);
      });
    }
  }
}

TEST(DistributedOptimizer, ZeroCutsTheMomentsOverTheDataParallelRanks) {
  const std::vector<ParameterSpec> large = {{.name = "a", .shape = {397, 501}},
                                            {.name = "b", .shape = {777}}};
  const auto bytes = static_cast<double>(2 * sizeof(float) * (397 * 501 + 777));
  for (int dp = 1; dp <= 5; ++dp) {
    for (const bool zero : {false, true}) {
      for (const std::int64_t bucket : {10000, 1 << 20}) {
        run_as_threads(dp, [&](Communicator& world) {
          const ProcessGrid grid(world, 1, "main");
          ParameterSet parameters(large, Device::cpu);
          const DistributedOptimizer optimizer(parameters, grid, cpu_backend(),
                                               {.zero = zero, .bucket_elements = bucket});
          const int share = zero ? dp : 1;
          EXPECT_NEAR(static_cast<double>(optimizer.moment_bytes()) * share / bytes, 1, 0.1)
              << dp << " ranks, buckets of " << bucket;
          EXPECT_EQ(optimizer.gradient_bytes(), zero && dp > 1 ? optimizer.moment_bytes() / 2 : 0);
        });
      }
    }
  }
}

}  // namespace
}  // namespace scone

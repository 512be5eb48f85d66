// Random grids, shapes and options, each against the same run on one rank.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <cstdlib>
#include <numeric>
#include <random>

#include "layout_checks.h"
#include "tiny_data.h"

namespace scone {
namespace {

constexpr std::uint64_t fixed_seed = 20251125;
constexpr int combinations = 60, steps = 3;

std::uint64_t seed_of_run() {
  const char* given = std::getenv("SCONE_PROPERTY_SEED");  // the nightly run draws a fresh one
  return given == nullptr ? fixed_seed : std::strtoull(given, nullptr, 10);
}

class Draw {
 public:
  explicit Draw(std::uint64_t seed) : random_(seed) {}
  /// 0 .. limit - 1.
  int below(int limit) { return static_cast<int>(random_() % static_cast<std::uint64_t>(limit)); }
  bool coin() { return below(2) == 0; }
  int divisor_of(int number) {
    int divisor = 1 + below(number);
    while (number % divisor != 0) --divisor;
    return divisor;
  }

 private:
  std::mt19937_64 random_;
};

void draw_shape(Draw& draw, int tp, std::int64_t width, TransformerConfig& model) {
  model.width = width;
  model.layers = 1 + draw.below(3);
  model.heads = tp;
  if (draw.coin() && width % (4 * tp) == 0) model.heads = 2 * tp;  // an even head width
  model.ffw = tp * (3 + draw.below(8));
  model.norm = draw.coin() ? NormKind::layernorm : NormKind::rmsnorm;
  model.position = draw.coin() ? PositionKind::learned : PositionKind::rope;
  model.activation = draw.coin() ? ActivationKind::gelu : ActivationKind::swiglu;
  model.bias = draw.coin();
}

void draw_grid(Draw& draw, GridConfig& grid) {
  grid.zero = draw.below(2);
  grid.sequence_parallel = draw.coin();
}

RunConfig draw_run(Draw& draw, const TinyData& data, int ranks, const std::string& name) {
  RunConfig config = data.run(name, 1);
  config.parallel.main.tp = draw.divisor_of(ranks);
  config.parallel.fgram.tp = draw.divisor_of(ranks);
  draw_grid(draw, config.parallel.main);
  draw_grid(draw, config.parallel.fgram);
  config.parallel.overlap = draw.coin();
  const std::int64_t buckets[] = {100, 1024, 1 << 20};
  config.parallel.bucket_elements = buckets[draw.below(3)];
  // Norms over a handful of elements would leave nothing but rounding to compare.
  const int unit = 2 * std::lcm(config.parallel.main.tp, config.parallel.fgram.tp);
  const std::int64_t width = unit * ((7 + unit) / unit + draw.below(3));
  draw_shape(draw, config.parallel.main.tp, width, config.model.main);
  const std::int64_t length = 8 + draw.below(25);
  config.model.main.context = length + draw.below(5);
  draw_shape(draw, config.parallel.fgram.tp, width, config.model.fgram);
  if (draw.below(8) == 0) config.model.fgram.layers = 0;
  if (config.model.fgram.layers == 0) config.fgrams.vocabulary.clear();
  config.model.tie_embeddings = draw.coin();
  config.model.combine = draw.coin() ? CombineKind::replace : CombineKind::add;
  config.model.fgram_recompute = draw.coin() ? FgramRecompute::chunk : FgramRecompute::none;
  config.model.fgram_chunk_nodes = 20 + draw.below(200);
  const Recompute kinds[] = {Recompute::none, Recompute::attention, Recompute::block};
  config.compute.recompute = kinds[draw.below(3)];
  if (config.parallel.fgram.tp == 1 && draw.below(6) == 0) config.fgrams.share = false;
  config.data.attention_across_documents = draw.coin();
  config.trainer.sequence_length = length;
  config.trainer.batch_tokens = length * (ranks / config.parallel.main.tp + draw.below(9));
  config.trainer.microbatch_tokens = length * (1 + draw.below(4));
  config.optimizer.epsilon = 1e-3;  // else AdamW turns rounding of tiny gradients into whole steps
  config.optimizer.clip = draw.coin() ? 0.1 : 0;
  return config;
}

std::string describe(const RunConfig& config, int ranks) {
  const auto grid = [](const GridConfig& g) {
    return fmt::format("tp {}{}{}", g.tp, g.zero ? " zero" : "", g.sequence_parallel ? " sp" : "");
  };
  const int replicas = ranks / config.parallel.main.tp;
  const std::int64_t tokens = (config.trainer.batch_tokens + replicas - 1) / replicas;
  const std::int64_t microbatches =
      (tokens + config.trainer.microbatch_tokens - 1) / config.trainer.microbatch_tokens;
  return fmt::format("{} ranks, main {}, f-gram {} ({} layers), {} microbatches, recompute {}{}{}",
                     ranks, grid(config.parallel.main), grid(config.parallel.fgram),
                     config.model.fgram.layers, microbatches,
                     static_cast<int>(config.compute.recompute),
                     config.model.tie_embeddings ? ", tied" : "",
                     config.parallel.overlap ? ", overlap" : "") +
         (config.fgrams.share ? "" : ", nothing shared");
}

TEST(LayoutProperty, RandomGridsAgreeWithOneRank) {
  const std::uint64_t seed = seed_of_run();
  std::printf("seed %llu (SCONE_PROPERTY_SEED=%llu repeats it)\n",
              static_cast<unsigned long long>(seed), static_cast<unsigned long long>(seed));
  Draw draw(seed);
  const TinyData even, odd(1), odder(7);  // vocabularies of 256, 257 and 263
  const TinyData* all[] = {&even, &odd, &odder};
  for (int i = 0; i < combinations && !::testing::Test::HasFailure(); ++i) {
    const int ranks = 1 + draw.below(8);
    const RunConfig config = draw_run(draw, *all[draw.below(3)], ranks, "run" + std::to_string(i));
    const std::string what = fmt::format("{:2}: {}", i, describe(config, ranks));
    const auto self = make_self_communicator();
    const Trajectory expected = run_trajectory(*self, on_one_rank(config), steps);
    run_as_threads(ranks, [&](Communicator& world) {
      omp_set_num_threads(1);
      check_trajectory(world, config, expected, what);
    });
  }
}

}  // namespace
}  // namespace scone

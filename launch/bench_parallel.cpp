#include "launch/bench_parallel.h"

#include <fmt/format.h>
#include <malloc.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "model/ops/ops.h"
#include "parallel/error.h"
#include "trainer/trainer.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// A barrier that sleeps, so that waiting ranks leave the cores to the one at work.
void quiet_barrier(Communicator& world) {
  float nothing = 0;
  const auto pending = world.start_all_reduce_sum({&nothing, 1});
  while (!pending->done()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
}

void print(const CommandContext& context, const std::string& line) {
  if (context.is_root() && !context.json) fmt::print("{}\n", line);
}

double megabytes(double bytes) { return bytes / 1e6; }

/// Resident memory of this process in bytes.
double resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  double total = 0, resident = 0;
  statm >> total >> resident;
  return resident * static_cast<double>(sysconf(_SC_PAGESIZE));
}

/// Fills in what the data says of the models.
ModelConfig model_of(RunConfig config) {
  open_run_data(config);
  return config.model;
}

/// A run that trains in memory: no validation, no checkpoint, a scratch folder.
RunConfig quiet_run(RunConfig config) {
  config.data.validation.clear();
  config.run.folder = (std::filesystem::temp_directory_path() / "scone-bench-no-run").string();
  return config;
}

struct MemoryRow {
  double predicted = 0, measured = 0;
};

/// Largest over the ranks of how much `make` adds to the resident memory; keeps what it made.
double measure_growth(Communicator& world, const std::function<void()>& make) {
  const double before = resident_bytes();
  make();
  return world.all_reduce_value(resident_bytes() - before, ReduceOp::max);
}

nlohmann::json memory_of_model(const std::string& model, const ProcessGrid& grid, bool zero,
                               const std::vector<ParameterSpec>& specs, double whole,
                               CommandContext& context) {
  ParameterSet parameters;
  std::unique_ptr<DistributedOptimizer> optimizer;
  const double of_parameters = measure_growth(context.world, [&] {
    parameters = ParameterSet(specs, Device::cpu, true, {grid.tensor_rank(), grid.tensor_size()});
  });
  const double of_moments = measure_growth(context.world, [&] {
    optimizer = std::make_unique<DistributedOptimizer>(parameters, grid, cpu_backend(),
                                                       OptimizerSettings{.zero = zero});
  });
  const double share = whole / grid.tensor_size();
  const MemoryRow values{2 * share, of_parameters};  // with their gradients
  // Moments, and with ZeRO the sums of the rank's slices of the gradients.
  const MemoryRow state{zero && grid.data_size() > 1 ? 3 * share / grid.data_size() : 2 * share,
                        of_moments};
  const auto off = [](const MemoryRow& row) { return 100 * (row.measured / row.predicted - 1); };
  print(context, fmt::format("{:<7} {:>3} {:>3} {:>5} {:>14.1f} {:>9.1f} {:>+6.1f}% {:>14.1f} "
                             "{:>9.1f} {:>+6.1f}%",
                             model, grid.tensor_size(), grid.data_size(), zero ? 1 : 0,
                             megabytes(values.predicted), megabytes(values.measured), off(values),
                             megabytes(state.predicted), megabytes(state.measured), off(state)));
  return {{"model", model},
          {"tp", grid.tensor_size()},
          {"dp", grid.data_size()},
          {"zero", zero},
          {"parameters_and_gradients", {values.predicted, values.measured}},
          {"optimizer_state", {state.predicted, state.measured}}};
}

/// Seconds of steps of several runs that take turns, so that all meet the same machine.
class StepRace {
 public:
  StepRace(Communicator& world, int rounds) : world_(world), rounds_(rounds) {}

  struct Entrant {
    Trainer* trainer;  // null on ranks that do not take part
    int threads;
    std::vector<double> seconds{};
    StepMetrics last{};
  };

  void run(std::vector<Entrant>& entrants) const {
    for (int round = -1; round < rounds_; ++round) {  // the first is not counted
      for (Entrant& entrant : entrants) {
        quiet_barrier(world_);
        const auto start = Clock::now();
        if (entrant.trainer != nullptr) {
          omp_set_num_threads(entrant.threads);
          entrant.last = entrant.trainer->train_step();
        }
        const double own = entrant.trainer != nullptr ? seconds_since(start) : 0.0;
        quiet_barrier(world_);
        const double slowest = world_.all_reduce_value(own, ReduceOp::max);
        if (round >= 0) entrant.seconds.push_back(slowest);
      }
    }
  }

 private:
  Communicator& world_;
  int rounds_;
};

}  // namespace

nlohmann::json bench_collectives(CommandContext& context) {
  Communicator& world = context.world;
  const auto ranks = static_cast<std::int64_t>(world.size());
  print(context, fmt::format("collectives over {}: GB/s of the message, best of 10\n"
                             "{:>9} {:>11} {:>18} {:>15} {:>11} {:>11}",
                             world.describe(), "MiB", "all-reduce", "all-reduce, begun",
                             "reduce-scatter", "all-gather", "all-to-all"));
  nlohmann::json rows = nlohmann::json::array();
  for (const std::int64_t mib : {1, 4, 16, 64}) {
    const std::int64_t elements = (mib << 18) / ranks * ranks;
    std::vector<float> values(static_cast<std::size_t>(elements), 1.0F), other(values.size());
    const std::vector<std::int64_t> counts(static_cast<std::size_t>(ranks), elements / ranks);
    const auto slice = std::span(other).first(static_cast<std::size_t>(elements / ranks));
    const std::vector<std::function<void()>> collectives = {
        [&] { world.all_reduce(std::span(values), ReduceOp::sum); },
        [&] { world.start_all_reduce_sum(values)->wait(); },
        [&] { world.reduce_scatter(values, counts, slice); },
        [&] { world.all_gather(std::span(values), counts); },
        [&] {
          world.all_to_all(std::as_bytes(std::span(values)), counts,
                           std::as_writable_bytes(std::span(other)), counts, sizeof(float));
        }};
    std::vector<double> speed;
    for (const auto& collective : collectives) {
      double best = 1e30;
      for (int repeat = 0; repeat < 11; ++repeat) {
        std::fill(values.begin(), values.end(), 1.0F);
        world.barrier();
        const auto start = Clock::now();
        collective();
        const double slowest = world.all_reduce_value(seconds_since(start), ReduceOp::max);
        if (repeat > 0) best = std::min(best, slowest);
      }
      speed.push_back(static_cast<double>(elements) * sizeof(float) / best / 1e9);
    }
    print(context, fmt::format("{:>9} {:>11.2f} {:>18.2f} {:>15.2f} {:>11.2f} {:>11.2f}", mib,
                               speed[0], speed[1], speed[2], speed[3], speed[4]));
    rows.push_back({{"mib", mib},
                    {"all_reduce", speed[0]},
                    {"all_reduce_begun", speed[1]},
                    {"reduce_scatter", speed[2]},
                    {"all_gather", speed[3]},
                    {"all_to_all", speed[4]}});
  }
  return rows;
}

nlohmann::json bench_memory(const RunConfig& config, CommandContext& context) {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);  // freed tensors leave the resident memory at once
  const ModelConfig model = model_of(config);
  const int ranks = context.world.size();
  print(context,
        fmt::format("\nmemory of a rank, MB: predicted (whole / tp, / dp with ZeRO) and "
                    "measured (growth of resident memory, the largest rank's)\n"
                    "{:<7} {:>3} {:>3} {:>5} {:>32} {:>32}",
                    "model", "tp", "dp", "ZeRO", "parameters + gradients", "optimizer state"));
  nlohmann::json rows = nlohmann::json::array();
  for (const std::string name : {"main", "fgram"}) {
    const TransformerConfig& shape = name == "main" ? model.main : model.fgram;
    if (shape.layers == 0) continue;
    const auto specs = name == "main" ? main_parameter_specs(model) : fgram_parameter_specs(model);
    const double whole = static_cast<double>(global_elements(specs)) * sizeof(float);
    for (int tp = 1; tp <= ranks; ++tp) {
      if (ranks % tp != 0 || shape.heads % tp != 0 || shape.ffw % tp != 0) continue;
      const ProcessGrid grid(context.world, tp, name);
      for (const bool zero : {false, true})
        if (!zero || ranks > tp)
          rows.push_back(memory_of_model(name, grid, zero, specs, whole, context));
    }
  }
  return rows;
}

nlohmann::json bench_layouts(const RunConfig& config, int rounds, CommandContext& context) {
  Communicator& world = context.world;
  const int ranks = world.size(), threads = omp_get_max_threads();
  if (ranks == 1)
    throw InputError("bench parallel: the layouts need 2 ranks or more (mpirun -np 2)");
  print(context,
        fmt::format("\nstep seconds, {} tokens a batch: medians of {}, each layout in turns "
                    "with one rank of {} threads\n{:<66} {:>8} {:>8} {:>6} {:>9} {:>9} {:>6}",
                    config.trainer.batch_tokens, rounds, ranks * threads, "", "one rank", "layout",
                    "ratio", "exchange", "reduction", "MB"));
  const auto self = make_self_communicator();
  RunConfig alone = quiet_run(config);
  alone.parallel.main = alone.parallel.fgram = {};
  nlohmann::json rows = nlohmann::json::array();
  const auto measure = [&](int main_tp, int fgram_tp, bool zero, bool sequence_parallel) {
    RunConfig run = quiet_run(config);
    run.parallel.main = {main_tp, zero ? 1 : 0, sequence_parallel};
    run.parallel.fgram = {fgram_tp, zero ? 1 : 0, sequence_parallel};
    std::unique_ptr<Trainer> one;
    if (context.is_root()) one = std::make_unique<Trainer>(alone, cpu_backend(), *self);
    Trainer all(run, cpu_backend(), world);
    std::vector<StepRace::Entrant> entrants = {{one.get(), ranks * threads}, {&all, threads}};
    StepRace(world, rounds).run(entrants);
    const std::string name =
        fmt::format("{} ranks x {}: main tp {} x dp {}, f-gram tp {} x dp {}{}{}", ranks, threads,
                    main_tp, ranks / main_tp, fgram_tp, ranks / fgram_tp, zero ? ", ZeRO" : "",
                    sequence_parallel ? ", SP" : "");
    const double of_one = median(entrants[0].seconds), of_all = median(entrants[1].seconds);
    const StepMetrics& last = entrants[1].last;
    print(context,
          fmt::format("{:<66} {:>8.3f} {:>8.3f} {:>6.3f} {:>9.4f} {:>9.4f} {:>6.2f}", name, of_one,
                      of_all, of_all / of_one, last.exchange_seconds, last.reduction_seconds,
                      megabytes(static_cast<double>(last.exchange_bytes))));
    rows.push_back({{"layout", name},
                    {"one_rank_seconds", of_one},
                    {"seconds", of_all},
                    {"ratio", of_all / of_one},
                    {"exchange_seconds", last.exchange_seconds},
                    {"reduction_seconds", last.reduction_seconds},
                    {"exchange_bytes", last.exchange_bytes},
                    {"fgram_nodes_per_token", last.fgram_nodes_per_token},
                    {"fgram_nodes_computed_per_token", last.fgram_nodes_computed_per_token}});
  };
  measure(1, 1, false, false);
  measure(1, 1, true, false);
  measure(ranks, ranks, false, false);
  measure(ranks, ranks, false, true);
  measure(ranks, 1, false, false);
  measure(1, ranks, false, false);
  return rows;
}

nlohmann::json bench_sharing(const std::vector<RunConfig>& runs, int rounds,
                             CommandContext& context) {
  print(context,
        fmt::format("\nstep seconds, median of {}\n{:>13} {:>9} {:>9} {:>16} {:>9} {:>11} "
                    "{:>14} {:>12} {:>16}",
                    rounds, "tokens/batch", "baseline", "SCONE", "nothing shared", "/baseline",
                    "/not shared", "nodes/token", "not shared", "paper/baseline"));
  nlohmann::json rows = nlohmann::json::array();
  for (RunConfig run : runs) {
    run = quiet_run(run);
    const std::int64_t tokens = run.trainer.batch_tokens;
    std::vector<std::unique_ptr<Trainer>> trainers;
    std::vector<StepRace::Entrant> entrants;
    const auto enter = [&] {
      trainers.push_back(std::make_unique<Trainer>(run, cpu_backend(), context.world));
      entrants.push_back({trainers.back().get(), omp_get_max_threads()});
    };
    enter();  // SCONE
    run.fgrams.share = false;
    enter();  // nothing shared
    run.fgrams = {};
    run.model.fgram.layers = 0;
    enter();  // the baseline
    StepRace(context.world, rounds).run(entrants);
    trainers.clear();
    const double scone = median(entrants[0].seconds), unshared = median(entrants[1].seconds),
                 baseline = median(entrants[2].seconds);
    print(context,
          fmt::format("{:>13} {:>9.2f} {:>9.2f} {:>16.2f} {:>9.3f} {:>11.3f} {:>14.3f} "
                      "{:>12.3f} {:>16.3f}",
                      tokens, baseline, scone, unshared, scone / baseline, scone / unshared,
                      entrants[0].last.fgram_nodes_computed_per_token,
                      entrants[1].last.fgram_nodes_computed_per_token, unshared / baseline));
    rows.push_back({{"batch_tokens", tokens},
                    {"baseline_seconds", baseline},
                    {"scone_seconds", scone},
                    {"unshared_seconds", unshared},
                    {"nodes_per_token", entrants[0].last.fgram_nodes_computed_per_token},
                    {"unshared_nodes_per_token", entrants[1].last.fgram_nodes_computed_per_token}});
  }
  return rows;
}

}  // namespace scone

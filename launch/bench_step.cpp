#include "launch/bench_step.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "data/size_suffix.h"
#include "launch/option_checks.h"
#include "model/fgram_model.h"
#include "model/main_model.h"
#include "model/ops/profiled_backend.h"
#include "parallel/error.h"
#include "parallel/process_grid.h"
#include "trainer/compute_device.h"
#include "trainer/distributed_optimizer.h"
#include "trainer/matrix_peak.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

struct NamedShape {
  const char* name;
  std::int64_t width, main_layers, heads, fgram_layers, context, vocabulary;
};

// gpt2-124m, -1.5b: Radford et al. 2019. scone-128m: arXiv 2502.01637, its 128M main model with an
// f-gram model of 176M parameters, and that main model alone.
constexpr NamedShape kShapes[] = {
    {"gpt2-30m", 384, 6, 6, 0, 256, 50257},       {"gpt2-124m", 768, 12, 12, 0, 1024, 50257},
    {"gpt2-1.5b", 1600, 48, 25, 0, 1024, 50257},  {"main-128m", 1024, 6, 16, 0, 1024, 50257},
    {"scone-128m", 1024, 6, 16, 14, 1024, 50257}, {"tiny", 64, 2, 4, 0, 64, 512},
    {"tiny-scone", 64, 2, 4, 3, 64, 512}};

struct Arguments {
  std::vector<std::string> shapes = {"gpt2-124m"};
  std::string device = "cpu", dtype = "fp32";
  std::string batch_tokens = "64Ki", microbatch_tokens = "8Ki";
  std::string recompute = "none";
  std::int64_t context = 0, width = 0, layers = 0;  // in place of a shape's; 0: the shape's own
  bool profile = false;
  double nodes_per_token = 0.44;
  int rounds = 5;
};

const NamedShape& shape_named(const std::string& name) {
  std::string names;
  for (const NamedShape& shape : kShapes) {
    if (name == shape.name) return shape;
    names += (names.empty() ? "" : ", ") + std::string(shape.name);
  }
  throw InputError(fmt::format("--shapes: '{}' is not one of {}", name, names));
}

/// A shape by name, with other sizes where they are given.
NamedShape shape_of(const std::string& name, const Arguments& arguments) {
  NamedShape shape = shape_named(name);
  if (arguments.context > 0) shape.context = arguments.context;
  if (arguments.layers > 0) shape.main_layers = arguments.layers;
  if (arguments.width > 0) {
    shape.heads = std::max<std::int64_t>(1, arguments.width * shape.heads / shape.width);
    shape.width = arguments.width;
    if (shape.width % shape.heads != 0)
      throw InputError(fmt::format("--width: {} is no multiple of the {} heads that {} has then",
                                   shape.width, shape.heads, name));
  }
  return shape;
}

ModelConfig config_of(const NamedShape& shape) {
  ModelConfig config;
  config.vocabulary_size = shape.vocabulary;
  config.main = {.width = shape.width,
                 .layers = shape.main_layers,
                 .heads = shape.heads,
                 .ffw = 4 * shape.width,
                 .context = shape.context};
  config.fgram = config.main;
  config.fgram.layers = shape.fgram_layers;
  config.fgram.context = 5;
  return config;
}

/// A batch of random tokens; with an f-gram model half of the positions have a random node's row.
struct SyntheticBatch {
  std::vector<std::int32_t> tokens, targets, starts, rows;
  std::vector<std::int32_t> node_token, node_parent, node_depth;

  SyntheticBatch(const ModelConfig& config, std::int64_t batch_tokens, double nodes_per_token) {
    std::mt19937 random(1);
    const auto below = [&](std::int64_t limit) {
      return static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(limit));
    };
    const bool has_fgrams = config.fgram.layers > 0;
    const auto nodes = static_cast<std::int64_t>(static_cast<double>(batch_tokens) *
                                                 (has_fgrams ? nodes_per_token : 0.0));
    for (std::int32_t i = 0; i < nodes; ++i) {  // preorder, each below the last or one above it
      std::int32_t parent = i - 1;
      for (int climb = below(4); climb > 0 && parent >= 0; --climb)
        parent = node_parent[static_cast<std::size_t>(parent)];
      std::int32_t depth = parent < 0 ? 0 : node_depth[static_cast<std::size_t>(parent)] + 1;
      if (depth >= config.fgram.context) parent = -1, depth = 0;
      node_token.push_back(below(config.vocabulary_size));
      node_parent.push_back(parent);
      node_depth.push_back(depth);
    }
    for (std::int64_t i = 0; i < batch_tokens; ++i) {
      tokens.push_back(below(config.vocabulary_size));
      targets.push_back(below(config.vocabulary_size));
      starts.push_back(0);
      if (has_fgrams) rows.push_back(i % 2 == 0 && nodes > 0 ? below(nodes) : -1);
    }
  }
  TrieNodes nodes() const { return {node_token, node_parent, node_depth}; }
};

/// Both models and their optimizers on one rank.
class StepBench {
 public:
  StepBench(const NamedShape& shape, const RunConfig& run, Backend& backend, Communicator& world,
            double nodes_per_token)
      : config_(config_of(shape)),
        run_(run),
        backend_(backend),
        grid_(world, 1, "main"),
        batch_(config_, run.trainer.batch_tokens, nodes_per_token),
        main_parameters_(main_parameter_specs(config_), backend.device(), true, {},
                         run.compute.dtype),
        fgram_parameters_(fgram_parameter_specs(config_), backend.device(), true, {},
                          run.compute.dtype) {
    main_parameters_.initialise(1, backend);
    main_ =
        std::make_unique<MainModel>(config_, main_parameters_, backend,
                                    MainModelOptions{.max_positions = run.trainer.microbatch_tokens,
                                                     .training = true,
                                                     .recompute = run.compute.recompute});
    main_optimizer_ = std::make_unique<DistributedOptimizer>(main_parameters_, grid_, backend,
                                                             OptimizerSettings{});
    const std::int64_t nodes = std::max<std::int64_t>(1, batch_.nodes().size());
    for (Tensor* rows : {&rows_, &row_gradients_})
      *rows = Tensor::zeros({nodes, shape.width}, DType::fp32, backend.device());
    if (shape.fgram_layers == 0) return;
    fgram_parameters_.initialise(2, backend);
    fgram_ = std::make_unique<FgramModel>(config_, fgram_parameters_,
                                          whole_token_table(main_parameters_), backend, true);
    fgram_optimizer_ = std::make_unique<DistributedOptimizer>(fgram_parameters_, grid_, backend,
                                                              OptimizerSettings{});
  }

  /// A step as the trainer takes it, the exchange of rows left out. Seconds; the mean loss.
  std::pair<double, double> step() {
    const auto start = Clock::now();
    backend_.zero(main_parameters_.flat_gradients());
    if (fgram_) {
      backend_.zero(fgram_parameters_.flat_gradients());
      backend_.zero(row_gradients_);
      fgram_->forward(batch_.nodes(), rows_);
    }
    const std::int64_t length = config_.main.context;
    const std::int64_t total = run_.trainer.batch_tokens;
    double loss = 0;
    for (std::int64_t begin = 0; begin < total; begin += run_.trainer.microbatch_tokens) {
      const std::int64_t count = std::min(run_.trainer.microbatch_tokens, total - begin);
      const auto part = [&](const std::vector<std::int32_t>& all) {
        return all.empty() ? std::span<const std::int32_t>()
                           : std::span<const std::int32_t>(all).subspan(
                                 static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
      };
      loss +=
          main_->forward_backward({count / length, length, part(batch_.tokens),
                                   part(batch_.targets), part(batch_.starts), part(batch_.rows)},
                                  rows_, row_gradients_, 1.0F / static_cast<float>(total));
    }
    if (fgram_) fgram_->backward(batch_.nodes(), row_gradients_);
    ++steps_;
    for (DistributedOptimizer* optimizer : {main_optimizer_.get(), fgram_optimizer_.get()}) {
      if (optimizer == nullptr) continue;
      norm_ = optimizer->squared_norm();
      optimizer->step(steps_, 1e-4, 1.0);
    }
    backend_.synchronize();
    return {std::chrono::duration<double>(Clock::now() - start).count(),
            loss / static_cast<double>(total)};
  }

  /// F-gram rows a second of the forward pass alone, as in baking. 0: no f-gram model.
  double rows_per_second() {
    if (!fgram_) return 0;
    backend_.synchronize();
    const auto start = Clock::now();
    fgram_->forward(batch_.nodes(), rows_);
    backend_.synchronize();
    return static_cast<double>(batch_.nodes().size()) /
           std::chrono::duration<double>(Clock::now() - start).count();
  }

  double step_flops() const {
    const auto tokens = static_cast<double>(run_.trainer.batch_tokens);
    const double attended = static_cast<double>(config_.main.context + 1) / 2;
    const double head = 2.0 * static_cast<double>(config_.main.width) *
                        static_cast<double>(config_.vocabulary_size);
    double flops = 3 * tokens * (forward_flops_per_token(config_.main, attended) + head);
    if (fgram_)
      flops += 3 * static_cast<double>(fgram_->nodes_computed()) *
               forward_flops_per_token(config_.fgram, 3.0);
    return flops;
  }

  double parameters() const {
    return static_cast<double>(global_elements(main_parameters_.specs()) +
                               global_elements(fgram_parameters_.specs()));
  }

  /// Bytes of parameters, gradients, moments, activations and rows.
  double bytes() const {
    std::size_t sum = rows_.bytes() + row_gradients_.bytes() + main_->activation_bytes() +
                      main_optimizer_->moment_bytes();
    if (fgram_) sum += fgram_->activation_bytes() + fgram_optimizer_->moment_bytes();
    for (const ParameterSet* set : {&main_parameters_, &fgram_parameters_})
      sum +=
          set->flat_values().bytes() + set->flat_gradients().bytes() + set->flat_working().bytes();
    return static_cast<double>(sum);
  }

 private:
  ModelConfig config_;
  const RunConfig& run_;
  Backend& backend_;
  ProcessGrid grid_;
  SyntheticBatch batch_;
  ParameterSet main_parameters_, fgram_parameters_;
  std::unique_ptr<MainModel> main_;
  std::unique_ptr<FgramModel> fgram_;
  std::unique_ptr<DistributedOptimizer> main_optimizer_, fgram_optimizer_;
  Tensor rows_, row_gradients_;
  std::int64_t steps_ = 0;
  double norm_ = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

RunConfig run_of(const Arguments& arguments) {
  RunConfig run;
  const auto choose = [](const std::string& option, const std::string& value, auto& target,
                         const auto& choices) {
    for (const auto& [name, chosen] : choices) {
      if (value != name) continue;
      target = chosen;
      return;
    }
    throw InputError(fmt::format("{}: unknown value '{}'", option, value));
  };
  using Devices = std::vector<std::pair<std::string, Device>>;
  using Types = std::vector<std::pair<std::string, DType>>;
  using Recomputes = std::vector<std::pair<std::string, Recompute>>;
  choose("--device", arguments.device, run.compute.device,
         Devices{{"cpu", Device::cpu}, {"cuda", Device::cuda}});
  choose("--dtype", arguments.dtype, run.compute.dtype,
         Types{{"fp32", DType::fp32}, {"bf16", DType::bf16}});
  choose("--recompute", arguments.recompute, run.compute.recompute,
         Recomputes{{"none", Recompute::none},
                    {"attention", Recompute::attention},
                    {"block", Recompute::block}});
  run.trainer.batch_tokens = parse_size_option("--batch-tokens", arguments.batch_tokens);
  run.trainer.microbatch_tokens =
      parse_size_option("--microbatch-tokens", arguments.microbatch_tokens);
  return run;
}

int run_step(const Arguments& arguments, CommandContext& context) {
  if (context.world.size() > 1)
    throw InputError("bench step measures one rank; run it without mpirun, or use bench parallel");
  const RunConfig run = run_of(arguments);
  std::vector<NamedShape> shapes;
  for (const std::string& name : arguments.shapes) {
    shapes.push_back(shape_of(name, arguments));
    for (const auto& [option, tokens] :
         {std::pair{"--batch-tokens", run.trainer.batch_tokens},
          std::pair{"--microbatch-tokens", run.trainer.microbatch_tokens}}) {
      if (tokens <= 0 || tokens % shapes.back().context != 0)
        throw InputError(fmt::format("{}: {} is no multiple of {}'s sequence length {}", option,
                                     tokens, name, shapes.back().context));
    }
  }
  const ComputeDevice device = open_compute_device(run, context.world);
  double peak = measure_matrix_peak(device.backend, run.compute.dtype);
  fmt::print("{}, {}; matrix peak {:.3f} TFLOP/s\n", device.description, arguments.dtype,
             peak / 1e12);
  fmt::print("{:<12} {:>10} {:>9} {:>10} {:>11} {:>7} {:>9} {:>12} {:>8}\n", "shape", "parameters",
             "tokens", "step, ms", "tokens/s", "peak", "GB", "f-gram rows/s", "loss");
  nlohmann::json rows = nlohmann::json::array();
  for (const NamedShape& shape : shapes) {
    OperationProfile profile;
    ProfiledBackend profiled(device.backend, profile);
    StepBench bench(shape, run, arguments.profile ? profiled : device.backend, *device.world,
                    arguments.nodes_per_token);
    std::vector<double> seconds, rates;
    double loss = bench.step().second;  // warms up
    bench.step();
    profile.restart();
    for (int round = 0; round < arguments.rounds; ++round) {
      const auto [step_seconds, step_loss] = bench.step();
      seconds.push_back(step_seconds);
      loss = step_loss;
      rates.push_back(bench.rows_per_second());
    }
    profile.stop();
    // Measured again, because what else the machine does changes from one second to the next.
    peak = std::max(peak, measure_matrix_peak(device.backend, run.compute.dtype));
    const double step = median(seconds), rate = median(rates);
    const auto tokens = static_cast<double>(run.trainer.batch_tokens);
    const double share = bench.step_flops() / step / peak;
    fmt::print("{:<12} {:>9.1f}M {:>9} {:>10.1f} {:>11.0f} {:>6.1f}% {:>9.2f} {:>12.0f} {:>8.4f}\n",
               shape.name, bench.parameters() / 1e6, run.trainer.batch_tokens, step * 1e3,
               tokens / step, 100 * share, bench.bytes() / 1e9, rate, loss);
    if (arguments.profile) fmt::print("{}", profile.table(peak));
    rows.push_back({{"shape", shape.name},
                    {"parameters", bench.parameters()},
                    {"step_seconds", seconds},
                    {"tokens_per_second", tokens / step},
                    {"peak_share", share},
                    {"bytes", bench.bytes()},
                    {"fgram_rows_per_second", rate},
                    {"loss", loss}});
  }
  context.print_result({{"device", device.description},
                        {"dtype", arguments.dtype},
                        {"matrix_peak", peak},
                        {"rows", rows}});
  return 0;
}

}  // namespace

void add_bench_step(CLI::App& bench, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = bench.add_subcommand(
      "step",
      "Training steps of known model shapes on synthetic tokens: tokens/s, share of the matrix "
      "peak, memory");
  std::string names;
  for (const NamedShape& shape : kShapes)
    names += (names.empty() ? "" : ", ") + std::string(shape.name);
  command->add_option("--shapes", arguments->shapes, "Of " + names)
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--device", arguments->device, "cpu, cuda")->capture_default_str();
  command->add_option("--dtype", arguments->dtype, "fp32, bf16")->capture_default_str();
  command->add_option("--batch-tokens", arguments->batch_tokens, "Of a step")
      ->capture_default_str();
  command->add_option("--microbatch-tokens", arguments->microbatch_tokens, "Computed at a time")
      ->capture_default_str();
  command->add_option("--recompute", arguments->recompute, "none, attention, block")
      ->capture_default_str();
  command
      ->add_option("--nodes-per-token", arguments->nodes_per_token,
                   "Distinct f-gram prefixes in a batch over its tokens, with an f-gram model")
      ->check(CLI::Range(0.0, 5.0))
      ->capture_default_str();
  command->add_option("--context", arguments->context, "Sequence length in place of the shape's")
      ->check(at_least(1));
  command
      ->add_option("--width", arguments->width,
                   "Width in place of the shape's, with heads of the same width")
      ->check(at_least(1));
  command->add_option("--layers", arguments->layers, "Main model's layers in place of the shape's")
      ->check(at_least(1));
  command->add_flag("--profile", arguments->profile,
                    "Time each operation, waiting for each, and print a table");
  command->add_option("--rounds", arguments->rounds, "Steps after two that warm up")
      ->check(at_least(1))
      ->capture_default_str();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_step(*arguments, context); };
  });
}

}  // namespace scone

#include "launch/plan/plan_report.h"

#include <fmt/format.h>

#include <algorithm>

namespace scone {
namespace {

double mebibytes(std::int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }
double gigabytes(std::int64_t bytes) { return static_cast<double>(bytes) / 1e9; }

const char* recompute_name(Recompute recompute) {
  switch (recompute) {
    case Recompute::none:
      return "none";
    case Recompute::attention:
      return "attention";
    case Recompute::block:
      return "block";
  }
  return "?";
}

std::string memory_table(const RunPlan& plan) {
  const RankMemory& memory = plan.memory[plan.largest];
  std::string table =
      fmt::format("{:<30}{:>12}{:>12}{:>12}\n", "memory of a rank, MiB", "main", "f-gram", "host");
  for (const MemoryItem& item : memory.items)
    table += fmt::format("  {:<28}{:>12.1f}{:>12.1f}{:>12.1f}\n", item.name, mebibytes(item.main),
                         mebibytes(item.fgram), mebibytes(item.host));
  const bool on_device = plan.config.compute.device != Device::cpu;
  return table + fmt::format("  sum: {:.1f} MiB {}, {:.1f} MiB {}\n",
                             mebibytes(memory.device_bytes()),
                             on_device ? "on the device" : "of tensors",
                             mebibytes(memory.host_bytes()), "on the host beside");
}

std::string collective_table(const RunPlan& plan, const DeviceFigures& device) {
  if (plan.collectives.empty()) return "no collectives: one rank\n";
  std::string table = fmt::format("{:<30}{:<22}{:<15}{:>6}{:>8}{:>12}{:>12}{:>10}\n",
                                  "collectives of a rank, a step", "group", "kind", "ranks",
                                  "calls", "in node, MB", "across, MB", "ms");
  for (const PlannedCollective& collective : plan.collectives) {
    const LinkBytes bytes = link_bytes(collective, device.ranks_per_node);
    table += fmt::format("  {:<28}{:<22}{:<15}{:>6}{:>8}{:>12.3f}{:>12.3f}{:>10.2f}\n",
                         collective.purpose, collective.group, name_of(collective.kind),
                         collective.ranks, collective.count.calls, bytes.within_node / 1e6,
                         bytes.across_nodes / 1e6, 1e3 * collective_seconds(collective, device));
  }
  return table;
}

struct TimePart {
  const char* name;
  double StepSeconds::*seconds;
};
constexpr TimePart kParts[] = {{"main_products", &StepSeconds::main_products},
                               {"main_memory", &StepSeconds::main_memory},
                               {"main_collectives", &StepSeconds::main_collectives},
                               {"fgram_products", &StepSeconds::fgram_products},
                               {"fgram_memory", &StepSeconds::fgram_memory},
                               {"fgram_collectives", &StepSeconds::fgram_collectives},
                               {"exchange", &StepSeconds::exchange},
                               {"reduction", &StepSeconds::reduction},
                               {"update", &StepSeconds::update}};

}  // namespace

std::string describe_plan(const RunPlan& plan, const FgramLoad& load, const DeviceFigures& device,
                          const VocabularyBytes& vocabulary) {
  const RunConfig& config = plan.config;
  const bool has_fgrams = config.model.fgram.layers > 0;
  std::string text = fmt::format(
      "{} ranks, {} a node, on {}: {:.1f} TFLOP/s of matrix products, {:.1f} GB, {:.0f} GB/s of "
      "memory, {:.1f} GB/s within a node, {:.1f} GB/s across, of a rank; reckoned with {:.0f} %, "
      "{:.0f} % and {:.0f} % of these rates\n",
      plan.ranks, std::min(plan.ranks, device.ranks_per_node), device.name,
      device.matrix_flops / 1e12, gigabytes(device.memory), device.memory_rate / 1e9,
      device.node_rate / 1e9, device.network_rate / 1e9, 100 * device.matrix_share,
      100 * device.memory_share, 100 * device.link_share);
  text += fmt::format("main model {:.1f}M parameters on tp {} x dp {}, zero {}, recompute {}\n",
                      static_cast<double>(plan.main_parameters) / 1e6, config.parallel.main.tp,
                      plan.ranks / config.parallel.main.tp, config.parallel.main.zero,
                      recompute_name(config.compute.recompute));
  if (has_fgrams)
    text += fmt::format(
        "f-gram model {:.1f}M parameters on tp {} x dp {}, zero {}; {} f-grams; {:.3f} nodes a "
        "token, {}\n",
        static_cast<double>(plan.fgram_parameters) / 1e6, config.parallel.fgram.tp,
        plan.ranks / config.parallel.fgram.tp, config.parallel.fgram.zero, vocabulary.fgrams,
        load.nodes_per_token,
        load.estimated ? "given: loads of the ranks are estimates, at most"
                       : fmt::format("of the first {} batches", load.steps.size()));
  text += memory_table(plan);
  text += fmt::format("  {:.2f} GB of {:.2f} a rank; {:.1f} GB of {:.1f} on a node's host\n",
                      gigabytes(plan.bytes()), gigabytes(device.memory),
                      gigabytes(plan.node_host_bytes(device, vocabulary)),
                      gigabytes(device.host_memory));
  for (const std::string& obstacle : plan.obstacles(device, vocabulary))
    text += fmt::format("  CANNOT RUN: {}\n", obstacle);
  text += collective_table(plan, device);
  text +=
      fmt::format("FLOPs of a step: main {:.3e}, f-gram {:.3e}; computed again: {:.3e}, {:.3e}\n",
                  plan.flops.main, plan.flops.fgram, plan.flops.main_again, plan.flops.fgram_again);
  text += "predicted seconds of a step:";
  for (const TimePart& part : kParts)
    text += fmt::format(" {} {:.4f}", part.name, plan.seconds.*part.seconds);
  return text + fmt::format("\nstep {:.4f} s, {:.0f} tokens/s; {} steps in {:.2f} h\n",
                            plan.seconds.sum(), plan.tokens_per_second(), config.total_steps(),
                            static_cast<double>(config.total_steps()) * plan.seconds.sum() / 3600);
}

std::string describe_grids(const std::vector<RunPlan>& plans, std::size_t most,
                           const DeviceFigures& device) {
  if (plans.empty()) return "no grid can run\n";
  std::string table =
      fmt::format("{:>8}{:>6}{:>11}{:>6}{:>12}{:>12}{:>10}{:>12}  (best of {} that fit, on {})\n",
                  "main tp", "zero", "f-gram tp", "zero", "recompute", "GB a rank", "step, s",
                  "tokens/s", plans.size(), device.name);
  for (std::size_t i = 0; i < std::min(most, plans.size()); ++i) {
    const RunPlan& plan = plans[i];
    const auto& parallel = plan.config.parallel;
    table += fmt::format("{:>8}{:>6}{:>11}{:>6}{:>12}{:>12.2f}{:>10.4f}{:>12.0f}\n",
                         parallel.main.tp, parallel.main.zero, parallel.fgram.tp,
                         parallel.fgram.zero, recompute_name(plan.config.compute.recompute),
                         gigabytes(plan.bytes()), plan.seconds.sum(), plan.tokens_per_second());
  }
  return table;
}

nlohmann::json to_json(const DeviceFigures& device) {
  return {{"name", device.name},
          {"matrix_flops", device.matrix_flops},
          {"memory_bytes", device.memory},
          {"memory_rate", device.memory_rate},
          {"node_rate", device.node_rate},
          {"network_rate", device.network_rate},
          {"node_latency", device.node_latency},
          {"network_latency", device.network_latency},
          {"message_seconds", device.message_seconds},
          {"host_memory_bytes", device.host_memory},
          {"ranks_per_node", device.ranks_per_node},
          {"matrix_share", device.matrix_share},
          {"memory_share", device.memory_share},
          {"link_share", device.link_share}};
}

nlohmann::json grid_json(const RunPlan& plan) {
  const auto& parallel = plan.config.parallel;
  return {{"main_tp", parallel.main.tp},
          {"main_zero", parallel.main.zero},
          {"fgram_tp", parallel.fgram.tp},
          {"fgram_zero", parallel.fgram.zero},
          {"recompute", recompute_name(plan.config.compute.recompute)},
          {"rank_bytes", plan.bytes()},
          {"step_seconds", plan.seconds.sum()},
          {"tokens_per_second", plan.tokens_per_second()}};
}

nlohmann::json to_json(const RunPlan& plan, const DeviceFigures& device,
                       const VocabularyBytes& vocabulary) {
  nlohmann::json json = grid_json(plan);
  json["ranks"] = plan.ranks;
  json["main_parameters"] = plan.main_parameters;
  json["fgram_parameters"] = plan.fgram_parameters;
  json["fits"] = plan.fits(device, vocabulary);
  json["obstacles"] = plan.obstacles(device, vocabulary);
  json["host_bytes"] = plan.host_bytes();
  json["node_host_bytes"] = plan.node_host_bytes(device, vocabulary);
  json["program_bytes"] = program_bytes();
  auto& memory = json["memory"] = nlohmann::json::array();
  for (const MemoryItem& item : plan.memory[plan.largest].items)
    memory.push_back(
        {{"name", item.name}, {"main", item.main}, {"fgram", item.fgram}, {"host", item.host}});
  auto& collectives = json["collectives"] = nlohmann::json::array();
  for (const PlannedCollective& collective : plan.collectives) {
    const LinkBytes bytes = link_bytes(collective, device.ranks_per_node);
    collectives.push_back({{"purpose", collective.purpose},
                           {"group", collective.group},
                           {"kind", name_of(collective.kind)},
                           {"ranks", collective.ranks},
                           {"calls", collective.count.calls},
                           {"bytes", collective.count.bytes},
                           {"sent_within_node", bytes.within_node},
                           {"sent_across_nodes", bytes.across_nodes},
                           {"seconds", collective_seconds(collective, device)}});
  }
  json["traffic"] = traffic_json(plan.traffic);
  json["flops"] = {{"main", plan.flops.main},
                   {"fgram", plan.flops.fgram},
                   {"main_again", plan.flops.main_again},
                   {"fgram_again", plan.flops.fgram_again}};
  auto& seconds = json["seconds"] = nlohmann::json::object();
  for (const TimePart& part : kParts) seconds[part.name] = plan.seconds.*part.seconds;
  return json;
}

}  // namespace scone

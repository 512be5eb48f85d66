#include "launch/plan/device_figures.h"

#include <fmt/format.h>
#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <span>
#include <thread>
#include <vector>

#include "model/ops/ops.h"
#include "parallel/error.h"
#include "trainer/matrix_peak.h"

namespace scone {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kGiga = 1e9, kTera = 1e12;

// Shares of the data sheets' figures that a step is assumed to reach. None is measured with this
// program, which has not run on these devices. Matrix products of width 2048 to 8192 in bf16; plain
// streams of memory; rings of NCCL.
constexpr double kMatrixShare = 0.6, kMemoryShare = 0.8, kLinkShare = 0.75;
constexpr double kNodeLatency = 20e-6, kNetworkLatency = 50e-6;  // seconds a collective, assumed
constexpr double kMessageSeconds = 1e-6;  // of each message of an all-to-all, assumed
// On a processor the rates are measured, the products being those of the peak; the smaller ones of
// models of width 96 to 768 reach about this share of it (docs/benchmarks/cpu.md), less in bf16,
// whose products alone take half as long.
constexpr double kMeasuredMatrixShare = 0.8, kMeasuredBf16MatrixShare = 0.65;

struct DataSheet {
  const char* name;
  double bf16, fp32;  // dense, FLOP/s; fp32 without tensor cores, as our kernels compute it
  double memory_gigabytes, memory_rate, nvlink_rate, network_rate;
  double host_gigabytes;
};

// h100: NVIDIA H100 Tensor Core GPU data sheet, SXM5: 989.4 TFLOPS bf16 dense (1,979 with
// sparsity), 67 TFLOPS fp32, 80 GB, 3.35 TB/s, NVLink 900 GB/s in both directions together. DGX
// H100 user guide: eight 400 Gb/s adapters for eight GPUs, 2 TB of memory. a100: NVIDIA A100 data
// sheet, SXM 80 GB: 312 TFLOPS bf16 dense, 19.5 TFLOPS fp32, 2,039 GB/s, NVLink 600 GB/s in both
// directions. DGX A100 user guide: eight 200 Gb/s adapters, 2 TB.
constexpr DataSheet kDataSheets[] = {
    {"h100", 989.4 * kTera, 67 * kTera, 80, 3350 * kGiga, 450 * kGiga, 50 * kGiga, 2000},
    {"a100", 312 * kTera, 19.5 * kTera, 80, 2039 * kGiga, 300 * kGiga, 25 * kGiga, 2000}};

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// Bytes read and written a second by all cores together.
double measure_memory_rate() {
  constexpr std::int64_t bytes = std::int64_t{64} << 20, block = std::int64_t{1} << 20;
  std::vector<char> from(bytes, 1), to(bytes, 2);
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto start = Clock::now();
#pragma omp parallel for schedule(static)
    for (std::int64_t begin = 0; begin < bytes; begin += block)
      std::memcpy(to.data() + begin, from.data() + begin, block);
    best = std::max(best, 2.0 * static_cast<double>(bytes) / seconds_since(start));
  }
  return best;
}

struct LinkSpeed {
  double rate, latency;
};

/// Of a group: bytes that a rank sends a second in a ring, and seconds of a small all-reduce.
LinkSpeed measure_link(Communicator& group) {
  const auto best_of = [&](std::size_t elements, int rounds) {
    std::vector<float> values(elements, 1.0F);
    double best = 1e9;
    for (int round = 0; round < rounds; ++round) {
      std::fill(values.begin(), values.end(), 1.0F);
      group.barrier();
      const auto start = Clock::now();
      group.all_reduce(std::span<float>(values), ReduceOp::sum);
      best = std::min(best, group.all_reduce_value(seconds_since(start), ReduceOp::max));
    }
    return best;
  };
  constexpr std::size_t elements = std::size_t{4} << 20;
  const double small = best_of(1, 50), large = best_of(elements, 5);
  const double ranks = group.size();
  const double sent = 2 * (ranks - 1) / ranks * static_cast<double>(elements * sizeof(float));
  return {sent / std::max(large - small, 1e-9), small};
}

}  // namespace

DeviceFigures device_figures(const std::string& name, DType dtype) {
  for (const DataSheet& sheet : kDataSheets) {
    if (name != sheet.name) continue;
    return {.name = name,
            .matrix_flops = dtype == DType::bf16 ? sheet.bf16 : sheet.fp32,
            .memory = static_cast<std::int64_t>(sheet.memory_gigabytes * kGiga),
            .memory_rate = sheet.memory_rate,
            .node_rate = sheet.nvlink_rate,
            .network_rate = sheet.network_rate,
            .node_latency = kNodeLatency,
            .network_latency = kNetworkLatency,
            .message_seconds = kMessageSeconds,
            .host_memory = static_cast<std::int64_t>(sheet.host_gigabytes * kGiga),
            .ranks_per_node = 8,
            .matrix_share = kMatrixShare,
            .memory_share = kMemoryShare,
            .link_share = kLinkShare};
  }
  throw InputError(
      fmt::format("--device: expected h100, a100 or measured (this machine), found '{}'", name));
}

DeviceFigures measure_device(int ranks, int threads, DType dtype, Communicator& world) {
  DeviceFigures figures{.name = "measured"};
  const double cores = std::max(1U, std::thread::hardware_concurrency());
  // Threads at full speed: of this process, under mpirun beside those of the other ranks.
  const double measuring = std::min<double>(omp_get_max_threads(), cores / world.size());
  const double of_rank = std::min(threads > 0 ? threads : cores, cores / ranks);
  world.barrier();
  figures.matrix_flops = measure_matrix_peak(cpu_backend(), dtype) / measuring * of_rank;
  world.barrier();
  figures.memory_rate = measure_memory_rate() / measuring * of_rank;
  LinkSpeed link{1e12, 0};
  if (world.size() > 1) {
    link = measure_link(world);
  } else if (ranks > 1) {
    run_as_threads(std::min(ranks, 8), [&](Communicator& group) {
      const LinkSpeed measured = measure_link(group);
      if (group.rank() == 0) link = measured;
    });
  }
  figures.node_rate = figures.network_rate = link.rate;
  figures.node_latency = figures.network_latency = link.latency;
  figures.host_memory = static_cast<std::int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  figures.memory = figures.host_memory / ranks;
  figures.ranks_per_node = ranks;
  figures.matrix_share = dtype == DType::bf16 ? kMeasuredBf16MatrixShare : kMeasuredMatrixShare;
  return figures;
}

}  // namespace scone

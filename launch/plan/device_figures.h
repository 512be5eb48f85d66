#pragma once

#include <cstdint>
#include <string>

#include "model/tensor.h"
#include "parallel/communicator.h"

namespace scone {

/// What one rank's device and its links can do. Rates are a second and a rank; a link's is of what
/// one rank sends, in one direction.
struct DeviceFigures {
  std::string name;
  double matrix_flops = 0;  // of dense products in the run's type
  std::int64_t memory = 0;  // bytes
  double memory_rate = 0;   // bytes
  double node_rate = 0;     // bytes, between ranks of a node
  double network_rate = 0;  // bytes, between nodes
  double node_latency = 0;  // seconds a collective
  double network_latency = 0;
  double message_seconds = 0;    // of each message of an all-to-all
  std::int64_t host_memory = 0;  // bytes of a node
  int ranks_per_node = 8;
  // The shares of these rates that the plan reckons with.
  double matrix_share = 1, memory_share = 1, link_share = 1;
};

/// "h100" or "a100": an SXM board in its maker's node of eight, from data sheets, with assumed
/// shares. Throws InputError for another name.
DeviceFigures device_figures(const std::string& name, DType dtype);

/// Of this machine as `ranks` ranks would share it, measured in a few seconds: one large matrix
/// product, a copy of memory, and all-reduces, by `world` where it has several ranks (collective),
/// else between threads. threads: of each rank; 0: a share of the cores.
DeviceFigures measure_device(int ranks, int threads, DType dtype, Communicator& world);

}  // namespace scone

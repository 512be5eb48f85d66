#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "model/tensor.h"
#include "parallel/communicator.h"
#include "parallel/sharding.h"

namespace scone {

class Backend;

enum class Grid { main, fgram };

/// Everything the rest of the system needs to know of a parameter. Initialisation, gradient norm,
/// optimizer, checkpoint and export read it; nothing is special-cased by name.
struct ParameterSpec {
  std::string name;        // "main.blocks.0.attention.qkv.weight"
  Shape shape;             // global shape; linear weights are [out, in]
  Sharding sharding = {};  // over the grid's tensor-parallel group
  Grid grid = Grid::main;
  bool weight_decay = true;  // matrices yes; biases, norms and position embeddings no
  double init_mean = 0;      // initial values are normal(init_mean, init_std), counter-based
  double init_std = 0;       // by (seed, name, global index)
  // Replicated, and its gradient is a sum over the rows that a rank holds: of all rows, or with
  // sequence parallelism of a part of them, so that the ranks' gradients must then be added.
  bool sums_rows = false;
  // Zero rows follow a shard in memory up to a multiple of this, for matrix products to include.
  std::int64_t padded_rows = 1;

  bool replicated() const { return sharding.axis < 0; }
};

/// One rank's shard of the parameters of one model: fp32 values and gradients, each in one flat
/// buffer in the order of the specs, and for bf16 a working copy of the values that the layers
/// compute with. The layout is the same on every rank of the tensor-parallel group; padding is zero
/// and stays so.
class ParameterSet {
 public:
  ParameterSet() = default;
  /// with_gradients = false: for inference; gradient(i) and flat_gradients() are empty tensors.
  /// part: this rank's place in the tensor-parallel group. dtype: of what the layers compute with.
  ParameterSet(std::vector<ParameterSpec> specs, Device device, bool with_gradients = true,
               const Part& part = {}, DType dtype = DType::fp32);

  std::size_t size() const { return specs_.size(); }
  std::int64_t elements() const { return flat_values_.elements(); }
  const ParameterSpec& spec(std::size_t i) const { return specs_.at(i); }
  std::span<const ParameterSpec> specs() const { return specs_; }
  const Part& part() const { return part_; }
  /// Where parameter i begins in the flat buffers.
  std::int64_t offset(std::size_t i) const { return offsets_.at(i); }
  DType dtype() const { return dtype_; }
  /// What the layers compute with, of dtype() and the shard's shape: with fp32 the value itself.
  const Tensor& value(std::size_t i) const { return values_.at(i); }
  const Tensor& gradient(std::size_t i) const { return gradients_.at(i); }
  /// value(i) and gradient(i) with the zero rows that follow them.
  const Tensor& padded_value(std::size_t i) const { return padded_values_.at(i); }
  const Tensor& padded_gradient(std::size_t i) const { return padded_gradients_.at(i); }
  /// Index of the parameter of that name; throws std::out_of_range.
  std::size_t find(const std::string& name) const;

  const Tensor& flat_values() const { return flat_values_; }        // [elements], fp32
  const Tensor& flat_gradients() const { return flat_gradients_; }  // [elements], fp32
  const Tensor& flat_working() const { return flat_working_; }      // bf16; empty with fp32
  void initialise(std::uint64_t seed, Backend& backend);
  /// The working copy from the values, after they were set.
  void refresh_working(Backend& backend);

 private:
  std::vector<ParameterSpec> specs_;
  Part part_;
  std::vector<std::int64_t> offsets_;
  std::vector<Tensor> values_, gradients_, padded_values_, padded_gradients_;
  DType dtype_ = DType::fp32;
  Tensor flat_values_, flat_gradients_, flat_working_;
};

/// Sets all values by fill(set), which is given a set in the host's memory: `parameters`, or where
/// they are on a device one like it, whose values then go there.
void fill_on_host(ParameterSet& parameters, Backend& backend,
                  const std::function<void(ParameterSet& host)>& fill);

/// Where each parameter begins in the flat buffers of one of `parts` ranks, and their length.
std::vector<std::int64_t> parameter_offsets(std::span<const ParameterSpec> specs, int parts);

/// The global tensor [spec.shape], on every rank of the tensor-parallel `group` (collective), from
/// each rank's shard (a value, a gradient, a moment).
Tensor gather_shards(const ParameterSpec& spec, const Tensor& shard, Communicator& group);

/// Elements of the global tensors together.
std::int64_t global_elements(std::span<const ParameterSpec> specs);

/// Standard normal numbers by (seed, stream name, index), from Philox4x32-10: the same whatever the
/// order or the grid. out[i] is number first_index + i of the stream.
void counter_normal(std::uint64_t seed, const std::string& stream, std::int64_t first_index,
                    std::span<float> out);

}  // namespace scone

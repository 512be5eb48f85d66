#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/parameter.h"
#include "model/tensor.h"

namespace scone {

/// A box of a global tensor, in this rank's memory.
struct TensorSlice {
  std::string name;    // "parameters/main.token_embedding", "adam_m/..", "adam_v/.."
  Shape global_shape;  // one or two axes
  Shape begin;         // first global index on each axis; the extent is values.shape()
  Tensor values;       // fp32, contiguous
};

/// Elements [begin, begin + values.elements()) of a flattened shard as boxes of the global tensor
/// (at most three a section: a piece of a row, whole rows, a piece of a row), padding left out.
/// values: flat, shared by the slices. name: the global tensor's. Throws std::logic_error for what
/// no parameter is: more than two axes, or columns cut with padding or by sections.
void append_slices(const std::string& name, const ParameterSpec& spec, const Part& part,
                   std::int64_t begin, const Tensor& values, std::vector<TensorSlice>& slices);

}  // namespace scone

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/tensor_slice.h"
#include "model/parameter.h"
#include "model/tensor.h"

namespace scone {

/// Elements [begin, begin + values.elements()) of a flattened shard as boxes of the global tensor
/// (at most three a section: a piece of a row, whole rows, a piece of a row), padding left out.
/// values: flat, shared by the slices. name: the global tensor's. Throws std::logic_error for what
/// no parameter is: more than two axes, or columns cut with padding or by sections.
void append_slices(const std::string& name, const ParameterSpec& spec, const Part& part,
                   std::int64_t begin, const Tensor& values, std::vector<TensorSlice>& slices);

}  // namespace scone

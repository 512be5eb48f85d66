#include <algorithm>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "checkpoint/checkpoint.h"

namespace scone {
namespace {

/// Copies a box between its own memory and the whole tensor.
void copy_box(const TensorSlice& slice, float* whole, bool into_whole) {
  const std::size_t last = slice.begin.size() - 1;
  const std::int64_t columns = slice.global_shape[last];
  const std::int64_t width = slice.values.dim(last);
  const std::int64_t rows = last == 0 ? 1 : slice.values.dim(0);
  float* box = slice.values.data<float>();
  for (std::int64_t row = 0; row < rows; ++row) {
    float* at = whole + ((last == 0 ? 0 : slice.begin[0]) + row) * columns + slice.begin[last];
    float* own = box + row * width;
    std::copy_n(into_whole ? own : at, width, into_whole ? at : own);
  }
}

std::vector<std::byte> to_root(Communicator& communicator, std::span<const std::byte> bytes) {
  std::vector<std::int64_t> sends(static_cast<std::size_t>(communicator.size()), 0);
  sends[0] = static_cast<std::int64_t>(bytes.size());
  const auto receives = communicator.exchange_counts(sends);
  std::int64_t total = 0;
  for (const std::int64_t count : receives) total += count;
  std::vector<std::byte> received(static_cast<std::size_t>(total));
  communicator.all_to_all(bytes, sends, received, receives, 1);
  return received;
}

}  // namespace

std::vector<NamedTensor> gather_tensors(Communicator& communicator,
                                        std::span<const TensorSlice> slices) {
  std::string headers;
  std::vector<std::byte> values;
  for (const TensorSlice& slice : slices) {
    headers +=
        nlohmann::json{slice.name, slice.global_shape, slice.begin, slice.values.shape()}.dump() +
        "\n";
    const auto* bytes = reinterpret_cast<const std::byte*>(slice.values.raw());
    values.insert(values.end(), bytes, bytes + slice.values.bytes());
  }
  const auto all_headers = to_root(communicator, std::as_bytes(std::span(headers)));
  const auto all_values = to_root(communicator, values);
  std::map<std::string, Tensor> tensors;
  const auto* text = reinterpret_cast<const char*>(all_headers.data());
  const char* const end = text + all_headers.size();
  const auto* next = all_values.data();
  while (text < end) {
    const char* line_end = std::find(text, end, '\n');
    const auto header = nlohmann::json::parse(text, line_end);
    text = line_end + 1;
    const Shape shape = header.at(1);
    Tensor& whole = tensors[header.at(0)];
    if (whole.empty()) whole = Tensor::zeros(shape);
    const TensorSlice slice{header.at(0), shape, header.at(2), Tensor::zeros(header.at(3))};
    std::memcpy(slice.values.raw(), next, slice.values.bytes());
    next += slice.values.bytes();
    copy_box(slice, whole.data<float>(), true);
  }
  std::vector<NamedTensor> result;
  for (auto& [name, tensor] : tensors) result.push_back({name, tensor});
  return result;
}

void read_slices(const std::filesystem::path& checkpoint, std::span<const TensorSlice> slices) {
  std::map<std::string, std::vector<const TensorSlice*>> by_name;
  for (const TensorSlice& slice : slices) by_name[slice.name].push_back(&slice);
  for (const auto& [name, of_tensor] : by_name) {
    const NamedTensor whole{name, Tensor::zeros(of_tensor.front()->global_shape)};
    read_tensors(checkpoint, {&whole, 1});
    for (const TensorSlice* slice : of_tensor) copy_box(*slice, whole.tensor.data<float>(), false);
  }
}

}  // namespace scone

#include "model/parameter.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <numbers>
#include <stdexcept>

#include "model/ops/ops.h"

namespace scone {
namespace {

// Parameters start at multiples of a cache line, so that two never share one.
constexpr std::int64_t kParameterAlignment = 16;  // fp32 elements

std::uint64_t fnv1a(const std::string& text) {
  std::uint64_t hash = 0xcbf29ce484222325ULL;
  for (const char character : text) {
    hash ^= static_cast<unsigned char>(character);
    hash *= 0x100000001b3ULL;
  }
  return hash;
}

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
std::array<std::uint32_t, 4> philox(std::array<std::uint32_t, 4> counter,
                                    std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53U} * counter[0];
    const std::uint64_t second = std::uint64_t{0xCD9E8D57U} * counter[2];
    counter = {static_cast<std::uint32_t>(second >> 32) ^ counter[1] ^ key[0],
               static_cast<std::uint32_t>(second),
               static_cast<std::uint32_t>(first >> 32) ^ counter[3] ^ key[1],
               static_cast<std::uint32_t>(first)};
    key[0] += 0x9E3779B9U;
    key[1] += 0xBB67AE85U;
  }
  return counter;
}

/// Four normal numbers of one counter, by Box-Muller on pairs.
std::array<float, 4> normal_block(std::uint64_t seed, std::uint64_t stream, std::uint64_t block) {
  const auto low = [](std::uint64_t value) { return static_cast<std::uint32_t>(value); };
  const auto high = [](std::uint64_t value) { return static_cast<std::uint32_t>(value >> 32); };
  const auto bits =
      philox({low(block), high(block), low(stream), high(stream)}, {low(seed), high(seed)});
  std::array<float, 4> normals{};
  for (std::size_t pair = 0; pair < 4; pair += 2) {
    const double radius_uniform = (bits[pair] + 0.5) * 0x1p-32;  // in (0, 1)
    const double angle_uniform = bits[pair + 1] * 0x1p-32;
    const double radius = std::sqrt(-2.0 * std::log(radius_uniform));
    const double angle = 2.0 * std::numbers::pi * angle_uniform;
    normals[pair] = static_cast<float>(radius * std::cos(angle));
    normals[pair + 1] = static_cast<float>(radius * std::sin(angle));
  }
  return normals;
}

std::int64_t elements_of(const Shape& shape) {
  std::int64_t elements = 1;
  for (const std::int64_t extent : shape) elements *= extent;
  return elements;
}

std::int64_t padded(std::int64_t elements) {
  return (elements + kParameterAlignment - 1) / kParameterAlignment * kParameterAlignment;
}

/// Of a shard, the zero rows that follow it in memory included.
Shape with_padded_rows(const ParameterSpec& spec, Shape shape) {
  if (spec.padded_rows > 1)
    shape[0] = (shape[0] + spec.padded_rows - 1) / spec.padded_rows * spec.padded_rows;
  return shape;
}

}  // namespace

void fill_on_host(ParameterSet& parameters, Backend& backend,
                  const std::function<void(ParameterSet& host)>& fill) {
  if (backend.device() == Device::cpu) return fill(parameters);
  const std::span<const ParameterSpec> specs = parameters.specs();
  ParameterSet host({specs.begin(), specs.end()}, Device::cpu, /*with_gradients=*/false,
                    parameters.part());
  fill(host);
  backend.upload(host.flat_values().span<float>(), parameters.flat_values());
}

std::vector<std::int64_t> parameter_offsets(std::span<const ParameterSpec> specs, int parts) {
  std::vector<std::int64_t> offsets = {0};
  for (const ParameterSpec& spec : specs) {
    const Shape shape = with_padded_rows(spec, shard_shape(spec.shape, spec.sharding, parts));
    offsets.push_back(offsets.back() + padded(elements_of(shape)));
  }
  return offsets;
}

ParameterSet::ParameterSet(std::vector<ParameterSpec> specs, Device device, bool with_gradients,
                           const Part& part, DType dtype)
    : specs_(std::move(specs)), part_(part), dtype_(dtype) {
  std::vector<Shape> shapes, padded_shapes;
  for (const ParameterSpec& spec : specs_) {
    shapes.push_back(shard_shape(spec.shape, spec.sharding, part.count));
    padded_shapes.push_back(with_padded_rows(spec, shapes.back()));
  }
  offsets_ = parameter_offsets(specs_, part.count);
  const std::int64_t total = offsets_.back();
  offsets_.pop_back();
  flat_values_ = Tensor::zeros({total}, DType::fp32, device);
  if (with_gradients) flat_gradients_ = Tensor::zeros({total}, DType::fp32, device);
  if (dtype != DType::fp32) flat_working_ = Tensor::zeros({total}, dtype, device);
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const auto view = [&](const Tensor& flat, const Shape& shape) {
      return flat.empty() ? Tensor() : flat.rows(offsets_[i], elements_of(shape)).view(shape);
    };
    const Tensor& computed_with = dtype == DType::fp32 ? flat_values_ : flat_working_;
    values_.push_back(view(computed_with, shapes[i]));
    padded_values_.push_back(view(computed_with, padded_shapes[i]));
    gradients_.push_back(view(flat_gradients_, shapes[i]));
    padded_gradients_.push_back(view(flat_gradients_, padded_shapes[i]));
  }
}

std::size_t ParameterSet::find(const std::string& name) const {
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    if (specs_[i].name == name) return i;
  }
  throw std::out_of_range(fmt::format("no parameter is named \"{}\"", name));
}

void ParameterSet::initialise(std::uint64_t seed, Backend& backend) {
  const bool on_host = flat_values_.device() == Device::cpu;
  const Tensor host = on_host ? flat_values_ : Tensor::zeros({elements()});
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const ParameterSpec& spec = specs_[i];
    const std::span<float> values = host.span<float>().subspan(
        static_cast<std::size_t>(offsets_[i]), static_cast<std::size_t>(values_[i].elements()));
    const auto mean = static_cast<float>(spec.init_mean);
    const auto deviation = static_cast<float>(spec.init_std);
    for_each_run(spec.shape, spec.sharding, part_,
                 [&](std::int64_t global, std::int64_t local, std::int64_t count) {
                   const auto run = values.subspan(static_cast<std::size_t>(local),
                                                   static_cast<std::size_t>(count));
                   if (deviation == 0.0F) {
                     std::fill(run.begin(), run.end(), mean);
                     return;
                   }
                   counter_normal(seed, spec.name, global, run);
                   for (float& value : run) value = mean + deviation * value;
                 });
  }
  if (!on_host) backend.upload(host.span<float>(), flat_values_);
  refresh_working(backend);
}

void ParameterSet::refresh_working(Backend& backend) {
  if (!flat_working_.empty()) backend.copy(flat_values_, flat_working_);
}

Tensor gather_shards(const ParameterSpec& spec, const Tensor& shard, Communicator& group) {
  Tensor global = Tensor::zeros(spec.shape);
  const std::span<float> target = global.span<float>();
  const std::int64_t extent = shard.elements();
  const bool whole = spec.replicated() || group.size() == 1;
  Tensor all = whole ? shard : Tensor::zeros({group.size(), extent});
  if (!whole) {
    const Tensor own = all.rows(group.rank(), 1);
    std::memcpy(own.raw(), shard.raw(), shard.bytes());
    group.all_gather(all.span<float>(),
                     std::vector<std::int64_t>(static_cast<std::size_t>(group.size()), extent));
  }
  const int parts = whole ? 1 : group.size();
  const float* shards = all.data<float>();
  for (int part = 0; part < parts; ++part)
    for_each_run(spec.shape, whole ? Sharding{} : spec.sharding, {part, parts},
                 [&](std::int64_t to, std::int64_t from, std::int64_t count) {
                   std::copy_n(shards + part * extent + from, count, target.begin() + to);
                 });
  return global;
}

std::int64_t global_elements(std::span<const ParameterSpec> specs) {
  std::int64_t count = 0;
  for (const ParameterSpec& spec : specs) count += elements_of(spec.shape);
  return count;
}

void counter_normal(std::uint64_t seed, const std::string& stream, std::int64_t first_index,
                    std::span<float> out) {
  if (first_index < 0) throw std::invalid_argument("counter_normal: negative index");
  if (out.empty()) return;
  const std::uint64_t stream_key = fnv1a(stream);
  const std::int64_t end = first_index + static_cast<std::int64_t>(out.size());
#pragma omp parallel for schedule(static)
  for (std::int64_t block = first_index / 4; block <= (end - 1) / 4; ++block) {
    const auto normals = normal_block(seed, stream_key, static_cast<std::uint64_t>(block));
    for (std::int64_t lane = 0; lane < 4; ++lane) {
      const std::int64_t index = block * 4 + lane;
      if (index >= first_index && index < end) {
        out[static_cast<std::size_t>(index - first_index)] =
            normals[static_cast<std::size_t>(lane)];
      }
    }
  }
}

}  // namespace scone

#include "trainer/distributed_optimizer.h"

#include <algorithm>

#include "checkpoint/shard_slices.h"
#include "parallel/bf16.h"

namespace scone {
namespace {

constexpr std::int64_t slice_alignment = 16;  // elements: slices begin at cache lines

std::span<float> flat_span(const Tensor& flat, std::int64_t begin, std::int64_t count) {
  return flat.span<float>().subspan(static_cast<std::size_t>(begin),
                                    static_cast<std::size_t>(count));
}

}  // namespace

DistributedOptimizer::DistributedOptimizer(ParameterSet& parameters, const ProcessGrid& grid,
                                           Backend& backend, const OptimizerSettings& settings)
    : parameters_(parameters), grid_(grid), backend_(backend), settings_(settings) {
  if (grid.data_size() == 1) settings_.zero = false;  // one slice is all there is
  const Part part{grid.data_rank(), grid.data_size()};
  std::int64_t sliced = 0;
  for (std::int64_t begin = 0; begin < parameters.elements(); begin += settings.bucket_elements) {
    const std::int64_t count = std::min(settings.bucket_elements, parameters.elements() - begin);
    const Slice own = slice_of_bucket(count, part);
    buckets_.push_back(
        {begin, count, sliced, own, slice_counts(count, part.count, slice_alignment)});
    sliced += own.count;
  }
  counted_ = pieces(true);
  updated_ = pieces(settings_.zero);
  const std::int64_t state = settings_.zero ? sliced : parameters.elements();
  first_moment_ = Tensor::zeros({state}, DType::fp32, backend.device());
  second_moment_ = Tensor::zeros({state}, DType::fp32, backend.device());
  if (settings_.zero) reduced_ = Tensor::zeros({sliced}, DType::fp32, backend.device());
  reducing_from_ = buckets_.size();
}

Slice DistributedOptimizer::slice_of_bucket(std::int64_t count, const Part& replica) {
  return slice_of(count, replica, slice_alignment);
}

DistributedOptimizer::~DistributedOptimizer() = default;

std::vector<DistributedOptimizer::Piece> DistributedOptimizer::pieces(bool slices_only) const {
  std::vector<Piece> found;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    const std::int64_t begin = parameters_.offset(i);
    const std::int64_t end = begin + parameters_.value(i).elements();
    if (!slices_only) {
      found.push_back({i, begin, begin, end - begin});
      continue;
    }
    for (std::int64_t at = begin; at < end;) {
      const Bucket& bucket = buckets_[static_cast<std::size_t>(at / settings_.bucket_elements)];
      const std::int64_t own_begin = bucket.begin + bucket.own.begin;
      const std::int64_t from = std::max(at, own_begin);
      const std::int64_t to = std::min(end, own_begin + bucket.own.count);
      if (from < to) found.push_back({i, from, bucket.state_begin + from - own_begin, to - from});
      at = bucket.begin + bucket.count;
    }
  }
  return found;
}

void DistributedOptimizer::sum_over_tensor_group(std::span<const Tensor> pieces, bool contributes) {
  std::int64_t count = 0;
  for (const Tensor& piece : pieces) count += piece.elements();
  if (count == 0) return;  // on every rank of the group
  if (packed_.elements() < count) packed_ = Tensor::zeros({count}, DType::fp32, backend_.device());
  const auto for_packed = [&](auto&& visit) {
    std::int64_t next = 0;
    for (const Tensor& piece : pieces) {
      visit(piece, packed_.rows(next, piece.elements()));
      next += piece.elements();
    }
  };
  if (contributes)
    for_packed([&](const Tensor& piece, const Tensor& packed) { backend_.copy(piece, packed); });
  else
    backend_.zero(packed_.rows(0, count));
  grid_.tensor().all_reduce(flat_span(packed_, 0, count), ReduceOp::sum);
  for_packed([&](const Tensor& piece, const Tensor& packed) { backend_.copy(packed, piece); });
}

void DistributedOptimizer::sum_split_rows(const Bucket& bucket) {
  if (!settings_.sequence_parallel || grid_.tensor_size() == 1) return;
  std::vector<Tensor> pieces;
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    if (!parameters_.spec(i).sums_rows) continue;
    const std::int64_t begin = std::max(bucket.begin, parameters_.offset(i));
    const std::int64_t end = std::min(bucket.begin + bucket.count,
                                      parameters_.offset(i) + parameters_.gradient(i).elements());
    if (begin < end) pieces.push_back(parameters_.flat_gradients().rows(begin, end - begin));
  }
  sum_over_tensor_group(pieces, true);
}

void DistributedOptimizer::take_replicated_from_first() {
  if (backend_.device() == Device::cpu || grid_.tensor_size() == 1) return;
  std::vector<Tensor> pieces;
  for (const Piece& piece : updated_)
    if (parameters_.spec(piece.parameter).replicated()) pieces.push_back(gradient_of(piece));
  sum_over_tensor_group(pieces, grid_.tensor_rank() == 0);
}

void DistributedOptimizer::reduce(std::size_t index, bool in_background) {
  const Bucket& bucket = buckets_[index];
  sum_split_rows(bucket);
  Communicator& group = grid_.data();
  if (group.size() == 1) return;
  const std::span<float> values =
      flat_span(parameters_.flat_gradients(), bucket.begin, bucket.count);
  if (settings_.zero) {
    const std::span<float> own = flat_span(reduced_, bucket.state_begin, bucket.own.count);
    if (in_background)
      pending_.push_back(group.start_reduce_scatter(values, bucket.counts, own));
    else
      group.reduce_scatter(values, bucket.counts, own);
  } else if (in_background) {
    pending_.push_back(group.start_all_reduce_sum(values));
  } else {
    group.all_reduce(values, ReduceOp::sum);
  }
}

void DistributedOptimizer::gradients_final(std::int64_t offset) {
  if (!settings_.overlap) return;
  while (reducing_from_ > 0 && buckets_[reducing_from_ - 1].begin >= offset)
    reduce(--reducing_from_, true);
}

void DistributedOptimizer::poll() {
  for (const auto& pending : pending_) pending->done();
}

void DistributedOptimizer::finish_reduction() {
  while (reducing_from_ > 0) reduce(--reducing_from_, false);
  for (const auto& pending : pending_) pending->wait();
  pending_.clear();
  reducing_from_ = buckets_.size();
  take_replicated_from_first();
}

Tensor DistributedOptimizer::gradient_of(const Piece& piece) const {
  return settings_.zero ? reduced_.rows(piece.state_begin, piece.count)
                        : parameters_.flat_gradients().rows(piece.flat_begin, piece.count);
}

const Tensor& DistributedOptimizer::gradients_of_update() const {
  return settings_.zero ? reduced_ : parameters_.flat_gradients();
}

double DistributedOptimizer::squared_norm() const {
  std::vector<Tensor> parts;
  for (const Piece& piece : counted_) {
    const bool counts = grid_.tensor_rank() == 0 || !parameters_.spec(piece.parameter).replicated();
    if (counts) parts.push_back(gradient_of(piece));
  }
  return backend_.squared_norm(parts);
}

void DistributedOptimizer::step(std::int64_t step, double lr, double gradient_scale) {
  std::vector<AdamwRange> ranges;
  for (const Piece& piece : updated_)
    ranges.push_back({piece.flat_begin, piece.state_begin, piece.count,
                      parameters_.spec(piece.parameter).weight_decay});
  const Tensor& working = parameters_.flat_working();
  backend_.adamw(
      {parameters_.flat_values(), gradients_of_update(), first_moment_, second_moment_, working},
      ranges,
      {.lr = static_cast<float>(lr),
       .beta1 = static_cast<float>(settings_.beta1),
       .beta2 = static_cast<float>(settings_.beta2),
       .eps = static_cast<float>(settings_.epsilon),
       .weight_decay = static_cast<float>(settings_.weight_decay),
       .step = step,
       .gradient_scale = static_cast<float>(gradient_scale),
       .stochastic_rounding = settings_.stochastic_rounding,
       .seed = settings_.seed});
  if (!settings_.zero) return;
  for (const Bucket& bucket : buckets_) {
    if (working.empty())
      grid_.data().all_gather(flat_span(parameters_.flat_values(), bucket.begin, bucket.count),
                              bucket.counts);
    else
      grid_.data().all_gather(std::span(static_cast<Bf16*>(working.raw()) + bucket.begin,
                                        static_cast<std::size_t>(bucket.count)),
                              bucket.counts);
  }
}

void DistributedOptimizer::gather_gradients() {
  if (!settings_.zero) return;
  for (const Bucket& bucket : buckets_) {
    if (bucket.own.count > 0)
      backend_.copy(
          reduced_.rows(bucket.state_begin, bucket.own.count),
          parameters_.flat_gradients().rows(bucket.begin + bucket.own.begin, bucket.own.count));
    grid_.data().all_gather(flat_span(parameters_.flat_gradients(), bucket.begin, bucket.count),
                            bucket.counts);
  }
}

void DistributedOptimizer::make_host_copies() {
  const auto copy_of = [](const Tensor& tensor) {
    return tensor.device() == Device::cpu ? tensor : Tensor::zeros(tensor.shape());
  };
  if (!host_values_.empty()) return;
  host_values_ = copy_of(parameters_.flat_values());
  host_first_moment_ = copy_of(first_moment_);
  host_second_moment_ = copy_of(second_moment_);
}

/// The bf16 copy of all values as update number `updates` has rounded it at random: by AdamW with a
/// learning rate of 0, which changes no value.
void DistributedOptimizer::round_working(std::int64_t updates) {
  const std::int64_t most = std::min(settings_.bucket_elements, parameters_.elements());
  const auto none = [&] { return Tensor::zeros({most}, DType::fp32, backend_.device()); };
  const Tensor gradients = none(), first_moment = none(), second_moment = none();
  for (const Bucket& bucket : buckets_)
    backend_.adamw({parameters_.flat_values(), gradients, first_moment, second_moment,
                    parameters_.flat_working()},
                   std::vector<AdamwRange>{{bucket.begin, 0, bucket.count, false}},
                   {.lr = 0, .step = updates, .stochastic_rounding = true, .seed = settings_.seed});
}

void DistributedOptimizer::take_state(std::int64_t updates) {
  if (backend_.device() != Device::cpu) {
    backend_.upload(host_values_.span<float>(), parameters_.flat_values());
    backend_.upload(host_first_moment_.span<float>(), first_moment_);
    backend_.upload(host_second_moment_.span<float>(), second_moment_);
  }
  parameters_.refresh_working(backend_);
  if (settings_.stochastic_rounding && updates > 0) round_working(updates);
}

std::vector<TensorSlice> DistributedOptimizer::state(bool for_writing) {
  make_host_copies();
  if (for_writing && backend_.device() != Device::cpu) {
    backend_.download(parameters_.flat_values(), host_values_.span<float>());
    backend_.download(first_moment_, host_first_moment_.span<float>());
    backend_.download(second_moment_, host_second_moment_.span<float>());
  }
  std::vector<TensorSlice> slices;
  const auto append = [&](const char* kind, const Tensor& flat, const Piece& piece,
                          std::int64_t flat_begin) {
    const ParameterSpec& spec = parameters_.spec(piece.parameter);
    if (for_writing && spec.replicated() && grid_.tensor_rank() != 0) return;
    append_slices(kind + spec.name, spec, parameters_.part(),
                  piece.flat_begin - parameters_.offset(piece.parameter),
                  flat.rows(flat_begin, piece.count), slices);
  };
  // Every data-parallel rank writes its slices, also of what all of them hold.
  for (const Piece& piece : for_writing ? counted_ : pieces(false))
    append("parameters/", host_values_, piece, piece.flat_begin);
  for (const Piece& piece : for_writing ? counted_ : updated_) {
    const std::int64_t at = settings_.zero ? piece.state_begin : piece.flat_begin;
    append("adam_m/", host_first_moment_, piece, at);
    append("adam_v/", host_second_moment_, piece, at);
  }
  return slices;
}

}  // namespace scone

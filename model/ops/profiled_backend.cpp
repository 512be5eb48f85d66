#include "model/ops/profiled_backend.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "parallel/error.h"

namespace scone {
namespace {

double count(std::int64_t value) { return static_cast<double>(value); }

/// Of one product of queries and keys, half of which are masked.
double attention_flops(const CausalShape& shape) {
  return count(shape.sequences) * count(shape.length) * count(shape.length + 1) *
         count(shape.heads * shape.head_width);
}

double seconds_between(OperationProfile::Clock::time_point begin,
                       OperationProfile::Clock::time_point end) {
  return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

void OperationProfile::restart() {
  const std::lock_guard lock(mutex_);
  events_.clear();
  totals_.clear();
  start_ = Clock::now();
  end_ = Clock::time_point::max();
}

void OperationProfile::stop() {
  const std::lock_guard lock(mutex_);
  end_ = Clock::now();
}

void OperationProfile::add(const std::string& name, Clock::time_point begin, double flops) {
  const Clock::time_point end = Clock::now();
  const std::lock_guard lock(mutex_);
  if (begin < start_ || end > end_) return;
  const auto place = totals_.try_emplace(name).first;
  ++place->second.calls;
  place->second.seconds += seconds_between(begin, end);
  place->second.flops += flops;
  if (events_.size() < kMostEvents)
    events_.push_back({&place->first, seconds_between(start_, begin), seconds_between(begin, end)});
}

std::string OperationProfile::table(double peak) const {
  const std::lock_guard lock(mutex_);
  const double all = seconds_between(start_, std::min(end_, Clock::now()));
  std::vector<std::pair<std::string, Total>> rows(totals_.begin(), totals_.end());
  std::stable_sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) {
    return a.second.seconds > b.second.seconds;
  });
  std::string text = fmt::format("{:44} {:>8} {:>10} {:>7} {:>9} {:>7}\n", "operation", "calls",
                                 "seconds", "share", "GFLOP/s", "of peak");
  double inside = 0, in_products = 0, flops = 0;
  for (const auto& [name, total] : rows) {
    inside += total.seconds;
    text += fmt::format("{:44} {:8} {:10.3f} {:6.1f}%", name, total.calls, total.seconds,
                        100 * total.seconds / all);
    if (total.flops > 0) {
      in_products += total.seconds;
      flops += total.flops;
      const double rate = total.flops / total.seconds;
      text += fmt::format(" {:9.1f} {:6.1f}%", rate * 1e-9, 100 * rate / peak);
    }
    text += "\n";
  }
  const auto sum = [&](const char* name, double seconds) {
    text += fmt::format("{:44} {:8} {:10.3f} {:6.1f}%", name, "", seconds, 100 * seconds / all);
  };
  sum("matrix products and causal attention", in_products);
  text += fmt::format(" {:9.1f} {:6.1f}%\n", flops / in_products * 1e-9,
                      100 * flops / in_products / peak);
  sum("outside of operations", all - inside);
  text += "\n";
  sum("all", all);
  text += fmt::format(" {:9.1f} {:6.1f}%\n", flops / all * 1e-9, 100 * flops / all / peak);
  return text;
}

void OperationProfile::write_trace(const std::filesystem::path& file, int rank) const {
  std::ofstream out(file, std::ios::trunc);
  {
    const std::lock_guard lock(mutex_);
    out << "{\"displayTimeUnit\": \"ms\", \"traceEvents\": [";
    const char* separator = "\n";
    for (const Event& event : events_) {
      out << separator
          << nlohmann::json{{"name", *event.name},        {"ph", "X"},   {"ts", event.begin * 1e6},
                            {"dur", event.seconds * 1e6}, {"pid", rank}, {"tid", 0}};
      separator = ",\n";
    }
    out << "\n]}\n";
  }
  out.close();
  if (!out) throw InputError(fmt::format("{}: the trace cannot be written", file.string()));
}

template <class Run>
auto ProfiledBackend::timed(const std::string& name, double flops, Run run) {
  const auto begin = OperationProfile::Clock::now();
  if constexpr (std::is_void_v<decltype(run())>) {
    run();
    backend_.synchronize();
    profile_.add(name, begin, flops);
  } else {
    const auto result = run();
    profile_.add(name, begin, flops);
    return result;
  }
}

void ProfiledBackend::upload(std::span<const std::int32_t> source, const Tensor& target) {
  timed("upload", 0.0, [&] { backend_.upload(source, target); });
}

void ProfiledBackend::upload(std::span<const float> source, const Tensor& target) {
  timed("upload", 0.0, [&] { backend_.upload(source, target); });
}

void ProfiledBackend::download(const Tensor& source, std::span<float> target) {
  timed("download", 0.0, [&] { backend_.download(source, target); });
}

void ProfiledBackend::copy(const Tensor& source, const Tensor& target) {
  timed("copy", 0.0, [&] { backend_.copy(source, target); });
}

void ProfiledBackend::zero(const Tensor& target) {
  timed("zero", 0.0, [&] { backend_.zero(target); });
}

void ProfiledBackend::linear(const Tensor& x, const Tensor& weight, const Tensor& bias,
                             const Tensor& residual, const Tensor& y, std::int64_t rows) {
  timed(fmt::format("linear {} to {}", weight.dim(1), weight.dim(0)),
        2.0 * count(rows) * count(weight.elements()),
        [&] { backend_.linear(x, weight, bias, residual, y, rows); });
}

void ProfiledBackend::linear_backward_input(const Tensor& d_y, const Tensor& weight,
                                            const Tensor& d_x, bool accumulate, std::int64_t rows) {
  timed(fmt::format("linear_backward_input {} to {}", weight.dim(1), weight.dim(0)),
        2.0 * count(rows) * count(weight.elements()),
        [&] { backend_.linear_backward_input(d_y, weight, d_x, accumulate, rows); });
}

void ProfiledBackend::linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                  const Tensor& pre, const Tensor& y, std::int64_t rows) {
  timed(fmt::format("linear_gelu {} to {}", weight.dim(1), weight.dim(0)),
        2.0 * count(rows) * count(weight.elements()),
        [&] { backend_.linear_gelu(x, weight, bias, pre, y, rows); });
}

void ProfiledBackend::linear_gelu_backward_input(const Tensor& d_y, const Tensor& weight,
                                                 const Tensor& pre, const Tensor& d_pre,
                                                 std::int64_t rows) {
  timed(fmt::format("linear_gelu_backward_input {} to {}", weight.dim(1), weight.dim(0)),
        2.0 * count(rows) * count(weight.elements()),
        [&] { backend_.linear_gelu_backward_input(d_y, weight, pre, d_pre, rows); });
}

void ProfiledBackend::linear_backward_weight(const Tensor& d_y, const Tensor& x,
                                             const Tensor& d_weight, const Tensor& d_bias,
                                             std::int64_t rows) {
  timed(fmt::format("linear_backward_weight {} to {}", d_weight.dim(1), d_weight.dim(0)),
        2.0 * count(rows) * count(d_weight.elements()),
        [&] { backend_.linear_backward_weight(d_y, x, d_weight, d_bias, rows); });
}

void ProfiledBackend::norm(NormKind kind, const Tensor& x, const Tensor& gain, const Tensor& bias,
                           const Tensor& y, const Tensor& statistics, std::int64_t rows) {
  timed("norm", 0.0, [&] { backend_.norm(kind, x, gain, bias, y, statistics, rows); });
}

void ProfiledBackend::norm_backward(NormKind kind, const Tensor& d_y, const Tensor& x,
                                    const Tensor& gain, const Tensor& statistics, const Tensor& d_x,
                                    bool accumulate, const Tensor& d_gain, const Tensor& d_bias,
                                    std::int64_t rows) {
  timed("norm_backward", 0.0, [&] {
    backend_.norm_backward(kind, d_y, x, gain, statistics, d_x, accumulate, d_gain, d_bias, rows);
  });
}

void ProfiledBackend::gelu(const Tensor& x, const Tensor& y, std::int64_t elements) {
  timed("gelu", 0.0, [&] { backend_.gelu(x, y, elements); });
}

void ProfiledBackend::gelu_backward(const Tensor& d_y, const Tensor& x, const Tensor& d_x,
                                    std::int64_t elements) {
  timed("gelu_backward", 0.0, [&] { backend_.gelu_backward(d_y, x, d_x, elements); });
}

void ProfiledBackend::swiglu(const Tensor& gate, const Tensor& up, const Tensor& y,
                             std::int64_t elements) {
  timed("swiglu", 0.0, [&] { backend_.swiglu(gate, up, y, elements); });
}

void ProfiledBackend::swiglu_backward(const Tensor& d_y, const Tensor& gate, const Tensor& up,
                                      const Tensor& d_gate, const Tensor& d_up,
                                      std::int64_t elements) {
  timed("swiglu_backward", 0.0,
        [&] { backend_.swiglu_backward(d_y, gate, up, d_gate, d_up, elements); });
}

void ProfiledBackend::rope(const Tensor& qkv, const Tensor& positions, std::int64_t heads,
                           std::int64_t head_width, bool inverse, std::int64_t rows) {
  timed("rope", 0.0, [&] { backend_.rope(qkv, positions, heads, head_width, inverse, rows); });
}

void ProfiledBackend::causal_attention(const CausalShape& shape, const Tensor& qkv,
                                       const Tensor& attention_start, const Tensor& out,
                                       const Tensor& log_sum_exp) {
  timed("causal_attention", 2.0 * attention_flops(shape),
        [&] { backend_.causal_attention(shape, qkv, attention_start, out, log_sum_exp); });
}

void ProfiledBackend::causal_attention_backward(const CausalShape& shape, const Tensor& qkv,
                                                const Tensor& attention_start, const Tensor& out,
                                                const Tensor& log_sum_exp, const Tensor& d_out,
                                                const Tensor& d_qkv) {
  timed("causal_attention_backward", 5.0 * attention_flops(shape), [&] {
    backend_.causal_attention_backward(shape, qkv, attention_start, out, log_sum_exp, d_out, d_qkv);
  });
}

void ProfiledBackend::trie_attention(const TrieShape& shape, const Tensor& qkv,
                                     const Tensor& parent, const Tensor& out,
                                     const Tensor& log_sum_exp) {
  timed("trie_attention", 0.0,
        [&] { backend_.trie_attention(shape, qkv, parent, out, log_sum_exp); });
}

void ProfiledBackend::trie_attention_backward(const TrieShape& shape, const Tensor& qkv,
                                              const Tensor& parent, const Tensor& out,
                                              const Tensor& log_sum_exp, const Tensor& d_out,
                                              const Tensor& d_qkv) {
  timed("trie_attention_backward", 0.0, [&] {
    backend_.trie_attention_backward(shape, qkv, parent, out, log_sum_exp, d_out, d_qkv);
  });
}

void ProfiledBackend::cached_attention(const Tensor& qkv, const Tensor& keys_values,
                                       std::int64_t past, std::int64_t heads,
                                       std::int64_t head_width, const Tensor& out,
                                       std::int64_t rows) {
  timed("cached_attention", 0.0,
        [&] { backend_.cached_attention(qkv, keys_values, past, heads, head_width, out, rows); });
}

void ProfiledBackend::gather_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                                  std::int64_t count) {
  timed("gather_rows", 0.0, [&] { backend_.gather_rows(source, index, target, count); });
}

void ProfiledBackend::scatter_rows(const Tensor& source, const Tensor& index, const Tensor& target,
                                   std::int64_t count) {
  timed("scatter_rows", 0.0, [&] { backend_.scatter_rows(source, index, target, count); });
}

void ProfiledBackend::scatter_add_rows(const Tensor& source, const Tensor& index,
                                       const Tensor& target, std::int64_t count) {
  timed("scatter_add_rows", 0.0, [&] { backend_.scatter_add_rows(source, index, target, count); });
}

void ProfiledBackend::embed(const EmbeddingInput& input, const Tensor& token_embedding,
                            const Tensor& position_embedding, const Tensor& rows, const Tensor& out,
                            std::int64_t count) {
  timed("embed", 0.0,
        [&] { backend_.embed(input, token_embedding, position_embedding, rows, out, count); });
}

void ProfiledBackend::embed_backward(const EmbeddingInput& input, const Tensor& d_out,
                                     const Tensor& d_token_embedding,
                                     const Tensor& d_position_embedding, const Tensor& d_rows,
                                     std::int64_t count) {
  timed("embed_backward", 0.0, [&] {
    backend_.embed_backward(input, d_out, d_token_embedding, d_position_embedding, d_rows, count);
  });
}

void ProfiledBackend::cross_entropy(const Tensor& logits, const Tensor& targets, std::int64_t used,
                                    const Tensor& losses, bool with_gradient, float gradient_scale,
                                    std::int64_t rows) {
  timed("cross_entropy", 0.0, [&] {
    backend_.cross_entropy(logits, targets, used, losses, with_gradient, gradient_scale, rows);
  });
}

void ProfiledBackend::cross_entropy_part(const Tensor& logits, const Tensor& targets,
                                         std::int64_t first_class, std::int64_t used,
                                         const Tensor& statistics, std::int64_t rows) {
  timed("cross_entropy_part", 0.0,
        [&] { backend_.cross_entropy_part(logits, targets, first_class, used, statistics, rows); });
}

void ProfiledBackend::cross_entropy_join(const Tensor& logits, const Tensor& targets,
                                         std::int64_t first_class, std::int64_t used,
                                         const Tensor& all_statistics, std::int64_t parts,
                                         const Tensor& losses, bool with_gradient,
                                         float gradient_scale, std::int64_t rows) {
  timed("cross_entropy_join", 0.0, [&] {
    backend_.cross_entropy_join(logits, targets, first_class, used, all_statistics, parts, losses,
                                with_gradient, gradient_scale, rows);
  });
}

void ProfiledBackend::adamw(const AdamwTensors& tensors, std::span<const AdamwRange> ranges,
                            const AdamwStep& step) {
  timed("adamw", 0.0, [&] { backend_.adamw(tensors, ranges, step); });
}

double ProfiledBackend::squared_norm(std::span<const Tensor> parts) {
  return timed("squared_norm", 0.0, [&] { return backend_.squared_norm(parts); });
}

double ProfiledBackend::sum(const Tensor& x) {
  return timed("sum", 0.0, [&] { return backend_.sum(x); });
}

}  // namespace scone

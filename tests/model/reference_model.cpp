#include "reference_model.h"

#include <cmath>
#include <numbers>

namespace scone::reference {
namespace {

using Index = std::size_t;

Index index(std::int64_t value) { return static_cast<Index>(value); }

/// y = x W^T + b, with b only where there is one.
Values linear(const Parameters& parameters, const std::string& name, const Values& x, Index in) {
  const Values& weight = parameters.at(name + ".weight");
  const Index out = weight.size() / in, n = x.size() / in;
  const auto bias = parameters.find(name + ".bias");
  Values y(n * out);
  for (Index i = 0; i < n; ++i) {
    for (Index o = 0; o < out; ++o) {
      double sum = bias == parameters.end() ? 0.0 : bias->second[o];
      for (Index j = 0; j < in; ++j) sum += x[i * in + j] * weight[o * in + j];
      y[i * out + o] = sum;
    }
  }
  return y;
}

Values norm(const Parameters& parameters, const std::string& name, NormKind kind, const Values& x) {
  const Values& gain = parameters.at(name + ".gain");
  const auto bias = parameters.find(name + ".bias");
  const Index width = gain.size();
  Values y(x.size());
  for (Index i = 0; i < x.size() / width; ++i) {
    double mean = 0, variance = 0;
    for (Index j = 0; kind == NormKind::layernorm && j < width; ++j) mean += x[i * width + j];
    mean /= static_cast<double>(width);
    for (Index j = 0; j < width; ++j) variance += std::pow(x[i * width + j] - mean, 2);
    variance /= static_cast<double>(width);
    for (Index j = 0; j < width; ++j) {
      y[i * width + j] = (x[i * width + j] - mean) / std::sqrt(variance + 1e-5) * gain[j] +
                         (bias == parameters.end() ? 0.0 : bias->second[j]);
    }
  }
  return y;
}

void rotate(double* head, Index head_width, Index position) {
  for (Index j = 0; j < head_width / 2; ++j) {
    const double angle =
        static_cast<double>(position) *
        std::pow(10000.0, -2.0 * static_cast<double>(j) / static_cast<double>(head_width));
    const double a = head[j], b = head[j + head_width / 2];
    head[j] = a * std::cos(angle) - b * std::sin(angle);
    head[j + head_width / 2] = a * std::sin(angle) + b * std::cos(angle);
  }
}

void add_to(Values& x, const Values& y) {
  for (Index i = 0; i < x.size(); ++i) x[i] += y[i];
}

Values attention(const TransformerConfig& config, Values qkv,
                 const std::vector<std::int32_t>& start) {
  const Index width = index(config.width), heads = index(config.heads), each = width / heads;
  const Index n = start.size();
  Values out(n * width, 0.0);
  for (Index i = 0; config.position == PositionKind::rope && i < n; ++i) {
    for (Index head = 0; head < 2 * heads; ++head)
      rotate(&qkv[i * 3 * width + head * each], each, i);
  }
  for (Index head = 0; head < heads; ++head) {
    for (Index i = 0; i < n; ++i) {
      Values weights(n, 0.0);
      double sum = 0;
      for (Index k = index(start[i]); k <= i; ++k) {
        double score = 0;
        for (Index e = 0; e < each; ++e) {
          score +=
              qkv[i * 3 * width + head * each + e] * qkv[(k * 3 + 1) * width + head * each + e];
        }
        weights[k] = std::exp(score / std::sqrt(static_cast<double>(each)));
        sum += weights[k];
      }
      for (Index k = 0; k < n; ++k) {
        for (Index e = 0; e < each; ++e) {
          out[i * width + head * each + e] +=
              weights[k] / sum * qkv[(k * 3 + 2) * width + head * each + e];
        }
      }
    }
  }
  return out;
}

Values embedding_of(const Parameters& parameters, std::int32_t token, Index width) {
  const Values& table = parameters.at("main.token_embedding");
  const auto from = table.begin() + static_cast<std::ptrdiff_t>(index(token) * width);
  return Values(from, from + static_cast<std::ptrdiff_t>(width));
}

}  // namespace

Parameters to_double(const ParameterSet& main, const ParameterSet& fgram) {
  Parameters parameters;
  for (const ParameterSet* set : {&main, &fgram}) {
    for (Index i = 0; i < set->size(); ++i) {
      const auto values = set->value(i).span<float>();
      parameters[set->spec(i).name] = Values(values.begin(), values.end());
    }
  }
  return parameters;
}

Values transformer(const TransformerConfig& config, const Parameters& parameters,
                   const std::string& prefix, Values input,
                   const std::vector<std::int32_t>& start) {
  const Index width = index(config.width), n = start.size();
  if (config.position == PositionKind::learned) {
    const Values& positions = parameters.at(prefix + "position_embedding");
    for (Index i = 0; i < n * width; ++i) input[i] += positions[i];
  }
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    const std::string block = prefix + "blocks." + std::to_string(layer) + ".";
    const Values first = norm(parameters, block + "attention_norm", config.norm, input);
    const Values mixed =
        attention(config, linear(parameters, block + "attention.qkv", first, width), start);
    add_to(input, linear(parameters, block + "attention.out", mixed, width));
    const Values second = norm(parameters, block + "ffw_norm", config.norm, input);
    Values inner = linear(parameters, block + "ffw.up", second, width);
    if (config.activation == ActivationKind::swiglu) {
      const Values gate = linear(parameters, block + "ffw.gate", second, width);
      for (Index i = 0; i < inner.size(); ++i) inner[i] *= gate[i] / (1.0 + std::exp(-gate[i]));
    } else {
      for (double& x : inner) {
        x *=
            0.5 * (1.0 + std::tanh(std::sqrt(2.0 / std::numbers::pi) * (x + 0.044715 * x * x * x)));
      }
    }
    add_to(input, linear(parameters, block + "ffw.down", inner, index(config.ffw)));
  }
  return norm(parameters, prefix + "final_norm", config.norm, input);
}

Values fgram_row(const ModelConfig& config, const Parameters& parameters,
                 const std::vector<std::int32_t>& tokens) {
  const Index width = index(config.fgram.width);
  Values input;
  for (const std::int32_t token : tokens) {
    const Values row = embedding_of(parameters, token, width);
    input.insert(input.end(), row.begin(), row.end());
  }
  const Values output = transformer(config.fgram, parameters, "fgram.", std::move(input),
                                    std::vector<std::int32_t>(tokens.size(), 0));
  return Values(output.end() - static_cast<std::ptrdiff_t>(width), output.end());
}

double loss(const ModelConfig& config, const Parameters& parameters, const Batch& batch,
            Values* losses) {
  const Index width = index(config.main.width), length = index(batch.length);
  const Values& head = parameters.at(config.tie_embeddings ? "main.token_embedding" : "main.head");
  double total = 0;
  for (Index sequence = 0; sequence < index(batch.sequences); ++sequence) {
    Values input;
    std::vector<std::int32_t> start;
    for (Index i = sequence * length; i < (sequence + 1) * length; ++i) {
      Values row = embedding_of(parameters, batch.tokens[i], width);
      if (!batch.match[i].empty()) {
        const Values own = fgram_row(config, parameters, batch.match[i]);
        if (config.combine == CombineKind::replace) row.assign(width, 0.0);
        add_to(row, own);
      }
      input.insert(input.end(), row.begin(), row.end());
      start.push_back(batch.attention_start[i]);
    }
    const Values x = transformer(config.main, parameters, "main.", std::move(input), start);
    for (Index i = 0; i < length; ++i) {
      const std::int32_t target = batch.targets[sequence * length + i];
      double sum = 0, at_target = 0;
      for (Index token = 0; token < index(config.vocabulary_size); ++token) {
        double logit = 0;
        for (Index j = 0; j < width; ++j) logit += x[i * width + j] * head[token * width + j];
        sum += std::exp(logit);
        if (static_cast<std::int32_t>(token) == target) at_target = logit;
      }
      const double own = target < 0 ? 0.0 : std::log(sum) - at_target;
      total += own;
      if (losses != nullptr) losses->push_back(own);
    }
  }
  return total;
}

}  // namespace scone::reference

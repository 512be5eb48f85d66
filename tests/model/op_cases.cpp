#include "op_cases.h"

#include <cmath>
#include <memory>

namespace scone {
namespace {

using Inputs = std::vector<Tensor>;
using References = std::vector<Doubles>;
constexpr std::int64_t kRows = 133;  // more than one tile of any loop, and no multiple of one

std::size_t at(std::int64_t row, std::int64_t width, std::int64_t column) {
  return static_cast<std::size_t>(row * width + column);
}

/// A tensor that the forward pass makes for the backward pass.
std::shared_ptr<Tensor> saved_tensor() { return std::make_shared<Tensor>(); }
Tensor make_fp32(Backend& backend, Shape shape) {
  return Tensor::zeros(std::move(shape), DType::fp32, backend.device());
}

OpCase linear_case() {
  const std::int64_t in = 37, out = 19;
  return {
      "linear",
      {{{kRows, in}}, {{out, in}, OpRole::parameter}, {{out}, OpRole::parameter}, {{kRows, out}}},
      {{kRows, out}},
      kRows,
      [](Backend& b, const Inputs& x, const Tensor& y) {
        b.linear(x[0], x[1], x[2], x[3], y, kRows);
      },
      [](Backend& b, const Inputs& x, const Tensor&, const Tensor& dy, const Inputs& dx) {
        b.linear_backward_input(dy, x[1], dx[0], false, kRows);
        b.linear_backward_weight(dy, x[0], dx[1], dx[2], kRows);
        b.copy(dy, dx[3]);
      },
      [=](const References& x) {
        Doubles y = x[3];
        for (std::int64_t i = 0; i < kRows; ++i) {
          for (std::int64_t o = 0; o < out; ++o) {
            y[at(i, out, o)] += x[2][at(0, out, o)];
            for (std::int64_t j = 0; j < in; ++j) {
              y[at(i, out, o)] += x[0][at(i, in, j)] * x[1][at(o, in, j)];
            }
          }
        }
        return y;
      }};
}

/// Through the gelu by its own backward operation, and through a second layer by the fused one.
OpCase linear_gelu_case() {
  const std::int64_t in = 24, inner = 40, out = 16;
  auto pre = saved_tensor(), hidden = saved_tensor();
  return {"linear_gelu",
          {{{kRows, in}},
           {{inner, in}, OpRole::parameter},
           {{inner}, OpRole::parameter},
           {{out, inner}, OpRole::parameter}},
          {{kRows, out}},
          2 * kRows,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            *pre = Tensor::zeros({kRows, inner}, x[0].dtype(), b.device());
            *hidden = Tensor::zeros({kRows, inner}, x[0].dtype(), b.device());
            b.linear_gelu(x[0], x[1], x[2], *pre, *hidden, kRows);
            b.linear(*hidden, x[3], {}, {}, y, kRows);
          },
          [=](Backend& b, const Inputs& x, const Tensor&, const Tensor& dy, const Inputs& dx) {
            const Tensor d_pre = Tensor::zeros({kRows, inner}, x[0].dtype(), b.device());
            b.linear_backward_weight(dy, *hidden, dx[3], {}, kRows);
            b.linear_gelu_backward_input(dy, x[3], *pre, d_pre, kRows);
            b.linear_backward_weight(d_pre, x[0], dx[1], dx[2], kRows);
            b.linear_backward_input(d_pre, x[1], dx[0], false, kRows);
          },
          [=](const References& x) {
            Doubles y(static_cast<std::size_t>(kRows * out), 0.0);
            for (std::int64_t i = 0; i < kRows; ++i) {
              for (std::int64_t k = 0; k < inner; ++k) {
                double v = x[2][at(0, inner, k)];
                for (std::int64_t j = 0; j < in; ++j) v += x[0][at(i, in, j)] * x[1][at(k, in, j)];
                v *= 0.5 * (1 + std::tanh(0.79788456080286536 * (v + 0.044715 * v * v * v)));
                for (std::int64_t o = 0; o < out; ++o)
                  y[at(i, out, o)] += v * x[3][at(o, inner, k)];
              }
            }
            return y;
          },
          inner};
}

OpCase norm_case(NormKind kind, const std::string& name) {
  const std::int64_t width = 21;
  auto statistics = saved_tensor();
  return {name,
          {{{kRows, width}}, {{width}, OpRole::parameter}, {{width}, OpRole::parameter}},
          {{kRows, width}},
          kRows,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            *statistics = make_fp32(b, {kRows, 2});
            b.norm(kind, x[0], x[1], x[2], y, *statistics, kRows);
          },
          [=](Backend& b, const Inputs& x, const Tensor&, const Tensor& dy, const Inputs& dx) {
            b.norm_backward(kind, dy, x[0], x[1], *statistics, dx[0], false, dx[1], dx[2], kRows);
          },
          [=](const References& x) {
            Doubles y(x[0].size());
            for (std::int64_t i = 0; i < kRows; ++i) {
              double mean = 0, variance = 0;
              for (std::int64_t j = 0; j < width; ++j) mean += x[0][at(i, width, j)] / 21.0;
              if (kind == NormKind::rmsnorm) mean = 0;
              for (std::int64_t j = 0; j < width; ++j) {
                variance += std::pow(x[0][at(i, width, j)] - mean, 2) / 21.0;
              }
              for (std::int64_t j = 0; j < width; ++j) {
                y[at(i, width, j)] = (x[0][at(i, width, j)] - mean) / std::sqrt(variance + 1e-5) *
                                         x[1][at(0, width, j)] +
                                     x[2][at(0, width, j)];
              }
            }
            return y;
          }};
}

OpCase gelu_case() {
  return {"gelu",
          {{{kRows}}},
          {{kRows}},
          16,
          [](Backend& b, const Inputs& x, const Tensor& y) { b.gelu(x[0], y, kRows); },
          [](Backend& b, const Inputs& x, const Tensor&, const Tensor& dy, const Inputs& dx) {
            b.gelu_backward(dy, x[0], dx[0], kRows);
          },
          [](const References& x) {
            Doubles y = x[0];
            for (double& v : y) {
              v *= 0.5 * (1 + std::tanh(0.79788456080286536 * (v + 0.044715 * v * v * v)));
            }
            return y;
          }};
}

OpCase swiglu_case() {
  return {"swiglu",
          {{{kRows}}, {{kRows}}},
          {{kRows}},
          16,
          [](Backend& b, const Inputs& x, const Tensor& y) { b.swiglu(x[0], x[1], y, kRows); },
          [](Backend& b, const Inputs& x, const Tensor&, const Tensor& dy, const Inputs& dx) {
            b.swiglu_backward(dy, x[0], x[1], dx[0], dx[1], kRows);
          },
          [](const References& x) {
            Doubles y = x[1];
            for (std::size_t i = 0; i < y.size(); ++i) y[i] *= x[0][i] / (1 + std::exp(-x[0][i]));
            return y;
          }};
}

/// Attention over the keys that keys(i) lists for row i.
Doubles attend(const Doubles& qkv, std::int64_t rows, std::int64_t heads, std::int64_t each,
               const std::function<std::vector<std::int64_t>(std::int64_t)>& keys) {
  const std::int64_t width = heads * each;
  Doubles out(static_cast<std::size_t>(rows * width), 0.0);
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t h = 0; h < heads; ++h) {
      Doubles weights;
      double sum = 0;
      for (const std::int64_t k : keys(i)) {
        double score = 0;
        for (std::int64_t e = 0; e < each; ++e) {
          score +=
              qkv[at(i, 3 * width, h * each + e)] * qkv[at(k, 3 * width, width + h * each + e)];
        }
        weights.push_back(std::exp(score / std::sqrt(static_cast<double>(each))));
        sum += weights.back();
      }
      std::size_t j = 0;
      for (const std::int64_t k : keys(i)) {
        for (std::int64_t e = 0; e < each; ++e) {
          out[at(i, width, h * each + e)] +=
              weights[j] / sum * qkv[at(k, 3 * width, 2 * width + h * each + e)];
        }
        ++j;
      }
    }
  }
  return out;
}

OpCase causal_attention_case() {
  const CausalShape shape{2, kRows, 2, 6};  // query tiles with and without keys to skip
  auto start = std::make_shared<std::vector<std::int32_t>>();
  for (std::int32_t i = 0; i < 2 * kRows; ++i) {
    const std::int32_t place = i % static_cast<std::int32_t>(kRows);
    start->push_back(place < 70 ? 0 : place < 90 ? 70 : 90);
  }
  auto saved = saved_tensor();
  return {"causal_attention",
          {{{2 * kRows, 36}}},
          {{2 * kRows, 12}},
          kRows,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            *saved = make_fp32(b, {2 * kRows, 2});
            b.causal_attention(shape, x[0], integers(b, *start), y, *saved);
          },
          [=](Backend& b, const Inputs& x, const Tensor& y, const Tensor& dy, const Inputs& dx) {
            b.causal_attention_backward(shape, x[0], integers(b, *start), y, *saved, dy, dx[0]);
          },
          [=](const References& x) {
            return attend(x[0], 2 * kRows, 2, 6, [=](std::int64_t i) {
              std::vector<std::int64_t> keys;
              const std::int64_t first = i / kRows * kRows + (*start)[static_cast<std::size_t>(i)];
              for (std::int64_t k = first; k <= i; ++k) keys.push_back(k);
              return keys;
            });
          }};
}

OpCase trie_attention_case() {
  const std::int64_t nodes = 2 * kRows + 5;
  const TrieShape shape{nodes, 2, 6};
  // Preorder: each node hangs below the one before it or below one of that one's ancestors; some
  // are roots.
  auto parent = std::make_shared<std::vector<std::int32_t>>();
  for (std::int32_t i = 0; i < nodes; ++i) {
    std::int32_t up = i % 11 == 0 ? -1 : i - 1;
    for (int climb = (i * 7) % 4; climb > 0 && up > 0 && (*parent)[std::size_t(up)] >= 0; --climb) {
      up = (*parent)[static_cast<std::size_t>(up)];
    }
    parent->push_back(up);
  }
  auto saved = saved_tensor();
  return {"trie_attention",
          {{{nodes, 36}}},
          {{nodes, 12}},
          64,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            *saved = make_fp32(b, {nodes, 2});
            b.trie_attention(shape, x[0], integers(b, *parent), y, *saved);
          },
          [=](Backend& b, const Inputs& x, const Tensor& y, const Tensor& dy, const Inputs& dx) {
            b.trie_attention_backward(shape, x[0], integers(b, *parent), y, *saved, dy, dx[0]);
          },
          [=](const References& x) {
            return attend(x[0], nodes, 2, 6, [=](std::int64_t i) {
              std::vector<std::int64_t> keys;
              for (; i >= 0; i = (*parent)[static_cast<std::size_t>(i)]) keys.push_back(i);
              return keys;
            });
          }};
}

OpCase rope_case() {
  std::vector<std::int32_t> positions;
  for (std::int32_t i = 0; i < kRows; ++i) positions.push_back((i * 5) % 40);
  return {"rope",
          {{{kRows, 24}}},
          {{kRows, 24}},
          8,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            b.copy(x[0], y);
            b.rope(y, integers(b, positions), 2, 4, false, kRows);
          },
          [=](Backend& b, const Inputs&, const Tensor&, const Tensor& dy, const Inputs& dx) {
            b.copy(dy, dx[0]);
            b.rope(dx[0], integers(b, positions), 2, 4, true, kRows);
          },
          [=](const References& x) {
            Doubles y = x[0];
            for (std::int64_t i = 0; i < kRows; ++i) {
              for (std::int64_t head = 0; head < 4; ++head) {
                for (std::int64_t j = 0; j < 2; ++j) {
                  const double angle = positions[static_cast<std::size_t>(i)] *
                                       std::pow(10000.0, -static_cast<double>(j) / 2);
                  const auto low = at(i, 24, head * 4 + j), high = low + 2;
                  y[low] = x[0][low] * std::cos(angle) - x[0][high] * std::sin(angle);
                  y[high] = x[0][high] * std::cos(angle) + x[0][low] * std::sin(angle);
                }
              }
            }
            return y;
          }};
}

OpCase embed_case(CombineKind combine, const std::string& name) {
  const std::int64_t width = 43;
  std::vector<std::int32_t> tokens, positions, rows;
  for (std::int32_t i = 0; i < kRows; ++i) {
    tokens.push_back((i * i) % 11);
    positions.push_back(i % 9);
    rows.push_back(i % 3 == 0 ? -1 : i % 7);
  }
  const auto input = [=](Backend& b) {
    return EmbeddingInput{integers(b, tokens), integers(b, positions), integers(b, rows), combine};
  };
  return {name,
          {{{11, width}, OpRole::parameter},
           {{9, width}, OpRole::parameter},
           {{7, width}, OpRole::fp32}},
          {{kRows, width}},
          kRows,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            b.embed(input(b), x[0], x[1], x[2], y, kRows);
          },
          [=](Backend& b, const Inputs&, const Tensor&, const Tensor& dy, const Inputs& dx) {
            b.embed_backward(input(b), dy, dx[0], dx[1], dx[2], kRows);
          },
          [=](const References& x) {
            Doubles y(static_cast<std::size_t>(kRows * width));
            for (std::int64_t i = 0; i < kRows; ++i) {
              const auto place = static_cast<std::size_t>(i);
              for (std::int64_t j = 0; j < width; ++j) {
                double& value = y[at(i, width, j)];
                value = x[1][at(positions[place], width, j)];
                if (rows[place] >= 0) value += x[2][at(rows[place], width, j)];
                if (rows[place] < 0 || combine == CombineKind::add) {
                  value += x[0][at(tokens[place], width, j)];
                }
              }
            }
            return y;
          }};
}

/// As on one of the ranks that share the embeddings: many tokens and rows are those of others.
OpCase embed_part_case(CombineKind combine, const std::string& name) {
  const std::int64_t width = 43;
  std::vector<std::int32_t> tokens, positions, rows;
  for (std::int32_t i = 0; i < kRows; ++i) {
    tokens.push_back(i % 4 < 2 ? -1 : (i * i) % 11);
    positions.push_back(i % 9);
    rows.push_back(i % 3 == 0 ? -1 : i % 3 == 1 ? kRowElsewhere : i % 7);
  }
  const auto input = [=](Backend& b) {
    return EmbeddingInput{integers(b, tokens), integers(b, positions), integers(b, rows), combine};
  };
  return {name,
          {{{11, width}, OpRole::parameter},
           {{9, width}, OpRole::parameter},
           {{7, width}, OpRole::fp32}},
          {{kRows, width}},
          kRows,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            b.upload(std::vector<float>(static_cast<std::size_t>(y.elements()), 1e9F), y);
            b.embed(input(b), x[0], x[1], x[2], y, kRows);
          },
          [=](Backend& b, const Inputs&, const Tensor&, const Tensor& dy, const Inputs& dx) {
            b.embed_backward(input(b), dy, dx[0], dx[1], dx[2], kRows);
          },
          [=](const References& x) {
            Doubles y(static_cast<std::size_t>(kRows * width));
            for (std::int64_t i = 0; i < kRows; ++i) {
              const auto place = static_cast<std::size_t>(i);
              const bool matched = rows[place] != -1;
              const bool has_token =
                  tokens[place] >= 0 && (!matched || combine == CombineKind::add);
              for (std::int64_t j = 0; j < width; ++j) {
                double& value = y[at(i, width, j)];
                value = x[1][at(positions[place], width, j)];
                if (has_token) value += x[0][at(tokens[place], width, j)];
                if (rows[place] >= 0) value += x[2][at(rows[place], width, j)];
              }
            }
            return y;
          }};
}

OpCase cross_entropy_case() {
  const std::int64_t classes = 29, padded = 32;
  std::vector<std::int32_t> targets;
  for (std::int32_t i = 0; i < kRows; ++i) targets.push_back(i % 5 == 0 ? -1 : (i * 3) % 29);
  // The operation itself takes one factor for all rows, so the output is the sum of losses.
  return {"cross_entropy",
          {{{kRows, padded}}},
          {{1}, OpRole::fp32},
          kRows,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            const Tensor losses = make_fp32(b, {kRows});
            b.cross_entropy(x[0], integers(b, targets), classes, losses, false, 0.0F, kRows);
            b.upload(std::vector<float>{static_cast<float>(b.sum(losses))}, y);
          },
          [=](Backend& b, const Inputs& x, const Tensor&, const Tensor& dy, const Inputs& dx) {
            b.copy(x[0], dx[0]);
            b.cross_entropy(dx[0], integers(b, targets), classes, make_fp32(b, {kRows}), true,
                            values_of(b, dy)[0], kRows);
          },
          [=](const References& x) {
            double total = 0;
            for (std::int64_t i = 0; i < kRows; ++i) {
              const std::int32_t target = targets[static_cast<std::size_t>(i)];
              double sum = 0;
              for (std::int64_t j = 0; j < classes; ++j) sum += std::exp(x[0][at(i, padded, j)]);
              if (target >= 0) total += std::log(sum) - x[0][at(i, padded, target)];
            }
            return Doubles{total};
          }};
}

/// Rows to where an index says; adding: several of them to one place.
OpCase rows_case(bool adding, const std::string& name) {
  const std::int64_t width = 36, targets = adding ? 17 : 2 * kRows;
  std::vector<std::int32_t> index;
  for (std::int32_t i = 0; i < kRows; ++i)
    index.push_back(adding ? (i % 3 == 0 ? 5 : (i * i) % 17)
                           : (i * 5) % static_cast<std::int32_t>(2 * kRows));
  return {name,
          {{{kRows, width}, OpRole::fp32}},
          {{targets, width}, OpRole::fp32},
          kRows,
          [=](Backend& b, const Inputs& x, const Tensor& y) {
            b.zero(y);
            if (adding)
              b.scatter_add_rows(x[0], integers(b, index), y, kRows);
            else
              b.scatter_rows(x[0], integers(b, index), y, kRows);
          },
          [=](Backend& b, const Inputs&, const Tensor&, const Tensor& dy, const Inputs& dx) {
            b.gather_rows(dy, integers(b, index), dx[0], kRows);
          },
          [=](const References& x) {
            Doubles y(static_cast<std::size_t>(targets * width), 0.0);
            for (std::int64_t i = 0; i < kRows; ++i)
              for (std::int64_t j = 0; j < width; ++j)
                y[at(index[static_cast<std::size_t>(i)], width, j)] += x[0][at(i, width, j)];
            return y;
          }};
}

}  // namespace

Tensor integers(Backend& backend, const std::vector<std::int32_t>& values) {
  Tensor tensor =
      Tensor::zeros({static_cast<std::int64_t>(values.size())}, DType::int32, backend.device());
  backend.upload(values, tensor);
  return tensor;
}

std::vector<float> values_of(Backend& backend, const Tensor& tensor) {
  std::vector<float> values(static_cast<std::size_t>(tensor.elements()));
  backend.download(tensor, values);
  return values;
}

std::vector<OpCase> op_cases() {
  return {linear_case(),
          linear_gelu_case(),
          norm_case(NormKind::layernorm, "layernorm"),
          norm_case(NormKind::rmsnorm, "rmsnorm"),
          gelu_case(),
          swiglu_case(),
          rope_case(),
          causal_attention_case(),
          trie_attention_case(),
          embed_case(CombineKind::replace, "embed_replace"),
          embed_case(CombineKind::add, "embed_add"),
          embed_part_case(CombineKind::replace, "embed_part_replace"),
          embed_part_case(CombineKind::add, "embed_part_add"),
          cross_entropy_case(),
          rows_case(false, "scatter_rows"),
          rows_case(true, "scatter_add_rows")};
}

}  // namespace scone

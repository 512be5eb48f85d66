// Rows by index, embeddings.

#include "model/ops/cuda/rows.h"

#include "attention_cases.h"
#include "model/ops/cuda/embedding.h"

namespace scone::cuda {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

using Integers = std::vector<std::int32_t>;

TEST(Rows, AreGatheredAndScattered) {
  for (const std::int64_t width : {1, 4, 21, 64, 640}) {
    for (const Integers& index : {Integers{}, {3}, {0, 4, 2}, {8, 1, 0, 7, 6, 5, 4, 3, 2}}) {
      const auto count = static_cast<std::int64_t>(index.size());
      const auto table = normal_values<float>(9 * width, 1);
      const DeviceArray<float> table_(table), gathered(at(count * width)), scattered(table.size());
      const DeviceArray<std::int32_t> index_(index);
      gather_rows(table_.data(), index_.data(), gathered.data(), count, width, nullptr);
      scatter_rows(gathered.data(), index_.data(), scattered.data(), count, width, nullptr);
      const std::vector<float> got = gathered.values(), back = scattered.values();
      for (std::int64_t row = 0; row < 9; ++row) {
        const auto found = std::find(index.begin(), index.end(), row);
        for (std::int64_t j = 0; j < width; ++j) {
          if (found == index.end()) {
            ASSERT_TRUE(std::isnan(back[at(row * width + j)]));
            continue;
          }
          const std::int64_t place = found - index.begin();
          ASSERT_EQ(got[at(place * width + j)], table[at(row * width + j)]);
          ASSERT_EQ(back[at(row * width + j)], table[at(row * width + j)]);
        }
      }
    }
  }
}

TEST(Rows, AreAddedInOrder) {
  for (const std::int64_t width : {1, 21, 64}) {
    for (const std::int64_t count : {0, 1, 5, 300}) {
      for (const std::int64_t targets : {1, 7, 1000}) {
        std::mt19937 random(3);
        Integers index;
        for (std::int64_t i = 0; i < count; ++i) {
          index.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(targets)));
        }
        const auto source = normal_values<float>(count * width, 1);
        auto expected = normal_values<float>(targets * width, 2);
        const DeviceArray<float> source_(source), target(expected);
        const DeviceArray<std::int32_t> index_(index);
        const DeviceArray<std::byte> workspace(at(scatter_add_rows_workspace_bytes(count)));
        scatter_add_rows(source_.data(), index_.data(), target.data(), targets, count, width,
                         workspace.data(), nullptr);
        for (std::int64_t i = 0; i < count; ++i) {
          for (std::int64_t j = 0; j < width; ++j) {
            expected[at(index[at(i)] * width + j)] += source[at(i * width + j)];
          }
        }
        ASSERT_EQ(target.values(), expected) << count << " rows of " << width << " to " << targets;
      }
    }
  }
}

template <class T>
class Embedding : public ::testing::Test {};
TYPED_TEST_SUITE(Embedding, KernelTypes, TypeNames);

struct EmbeddingCase {
  std::int64_t count, width, vocabulary, context, rows;
  bool with_positions, with_rows;
  CombineKind combine;
};

std::string describe(const EmbeddingCase& c) {
  return std::to_string(c.count) + " x " + std::to_string(c.width) + ", vocabulary " +
         std::to_string(c.vocabulary) + (c.with_positions ? ", positions" : "") +
         (c.with_rows ? c.combine == CombineKind::add ? ", rows added" : ", rows" : "");
}

/// Forward and backward, on tables of vocabulary, context and rows, one after another.
template <class T>
void check_embedding(const EmbeddingCase& c) {
  std::mt19937 random(5);
  const auto below = [&](std::int64_t end) {
    return static_cast<std::int32_t>(random() % static_cast<unsigned>(end));
  };
  Integers tokens, positions, row_of;
  for (std::int64_t i = 0; i < c.count; ++i) {
    tokens.push_back(below(8) == 0 && c.vocabulary > 1 ? -1 : below(c.vocabulary));
    positions.push_back(static_cast<std::int32_t>(i % c.context));
    const std::int32_t kind = below(8);
    row_of.push_back(kind == 0 ? -2 : kind < 4 ? -1 : below(c.rows));
  }
  const auto token_table = normal_values<T>(c.vocabulary * c.width, 1),
             position_table = normal_values<T>(c.context * c.width, 2);
  const auto row_table = normal_values<float>(c.rows * c.width, 3);
  const auto d_out = normal_values<T>(c.count * c.width, 4);
  const Doubles token_values = doubles_of(token_table),
                position_values = doubles_of(position_table), row_values = doubles_of(row_table),
                d = doubles_of(d_out);
  Doubles expected(at(c.count * c.width)), d_tokens(token_values.size(), 0.5),
      d_positions(position_values.size(), 0.5), d_rows(row_values.size(), 0.5);
  for (std::int64_t i = 0; i < c.count; ++i) {
    const std::int64_t row = c.with_rows ? row_of[at(i)] : -1;
    const bool takes_token = tokens[at(i)] >= 0 && (row == -1 || c.combine == CombineKind::add);
    for (std::int64_t j = 0; j < c.width; ++j) {
      double& sum = expected[at(i * c.width + j)];
      const double gradient = d[at(i * c.width + j)];
      const auto take = [&](const Doubles& table, Doubles& gradients, std::int64_t index) {
        sum += table[at(index * c.width + j)];
        gradients[at(index * c.width + j)] += gradient;
      };
      if (row >= 0) take(row_values, d_rows, row);
      if (takes_token) take(token_values, d_tokens, tokens[at(i)]);
      if (c.with_positions) take(position_values, d_positions, positions[at(i)]);
    }
  }
  const DeviceArray<T> token_table_(token_table), position_table_(position_table), d_out_(d_out),
      out(d_out.size());
  const DeviceArray<float> row_table_(row_table);
  const DeviceArray<std::int32_t> tokens_(tokens), positions_(positions), row_of_(row_of);
  const EmbeddingIndices indices{tokens_.data(), positions_.data(),
                                 c.with_rows ? row_of_.data() : nullptr, c.combine};
  embed(indices, token_table_.data(), c.with_positions ? position_table_.data() : nullptr,
        row_table_.data(), out.data(), c.count, c.width, nullptr);
  EXPECT_LT(worst_error(out.doubles(), expected, c.width), tolerance<T>(4, 1)) << describe(c);

  std::vector<float> first;
  for (int repeat = 0; repeat < 2; ++repeat) {
    const DeviceArray<float> tokens_sum(std::vector<float>(d_tokens.size(), 0.5F)),
        positions_sum(std::vector<float>(d_positions.size(), 0.5F)),
        rows_sum(std::vector<float>(d_rows.size(), 0.5F));
    const EmbeddingGradients gradients{
        tokens_sum.data(), c.vocabulary,    c.with_positions ? positions_sum.data() : nullptr,
        c.context,         rows_sum.data(), c.rows};
    const DeviceArray<std::byte> workspace(
        at(embed_backward_workspace_bytes(indices, gradients, c.count, c.width)));
    embed_backward(indices, d_out_.data(), gradients, c.count, c.width, workspace.data(), nullptr);
    if (repeat > 0) {
      EXPECT_EQ(tokens_sum.values(), first) << describe(c) << ": another order of blocks";
      continue;
    }
    first = tokens_sum.values();
    // Sums in fp32 of exact gradients, whatever T is.
    const double allowed = tolerance<float>(c.count + 2, 1);
    EXPECT_LT(worst_error(tokens_sum.doubles(), d_tokens, c.width), allowed) << describe(c);
    EXPECT_LT(worst_error(positions_sum.doubles(), d_positions, c.width), allowed) << describe(c);
    EXPECT_LT(worst_error(rows_sum.doubles(), d_rows, c.width), allowed) << describe(c);
  }
}

TYPED_TEST(Embedding, FromEverySource) {
  for (const std::int64_t width : {1, 21, 64}) {
    for (const bool with_positions : {false, true}) {
      check_embedding<TypeParam>(
          {50, width, 11, 7, 5, with_positions, false, CombineKind::replace});
      for (const CombineKind combine : {CombineKind::replace, CombineKind::add}) {
        check_embedding<TypeParam>({50, width, 11, 7, 5, with_positions, true, combine});
      }
    }
  }
}

TYPED_TEST(Embedding, RunsOfOnePlaceAcrossTiles) {
  // Runs within a tile of 64, of a whole number of tiles, and over many; one place for all.
  for (const std::int64_t count : {1, 63, 64, 65, 128, 129, 640, 1000}) {
    check_embedding<TypeParam>({count, 8, 1, 1, 1, true, true, CombineKind::add});
    check_embedding<TypeParam>({count, 8, 3, 5, 2, true, true, CombineKind::replace});
    check_embedding<TypeParam>({count, 5, 1, 1, 1, false, false, CombineKind::replace});
  }
  check_embedding<TypeParam>({300, 2056, 2, 300, 40, true, true, CombineKind::replace});
  check_embedding<TypeParam>({0, 8, 3, 5, 2, true, true, CombineKind::replace});
}

}  // namespace
}  // namespace scone::cuda

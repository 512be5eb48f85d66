#include "model/ops/cuda/cross_entropy.h"

#include "attention_cases.h"

namespace scone::cuda {
namespace {

struct Reference {
  Doubles losses, gradients;
};

/// gradients: of the losses times `gradient_scale`.
Reference reference(const Doubles& logits, const std::vector<std::int32_t>& targets,
                    double gradient_scale) {
  const std::size_t rows = targets.size(), classes = logits.size() / rows;
  Reference result;
  for (std::size_t i = 0; i < rows; ++i) {
    const double* const row = logits.data() + i * classes;
    const double largest = *std::max_element(row, row + classes);
    double sum = 0;
    for (std::size_t j = 0; j < classes; ++j) sum += std::exp(row[j] - largest);
    const bool counts = targets[i] >= 0;
    const auto target = static_cast<std::size_t>(counts ? targets[i] : 0);
    result.losses.push_back(counts ? std::log(sum) + largest - row[target] : 0);
    for (std::size_t j = 0; j < classes; ++j) {
      const double weight = std::exp(row[j] - largest) / sum - (j == target ? 1 : 0);
      result.gradients.push_back(counts ? gradient_scale * weight : 0);
    }
  }
  return result;
}

/// Row 1 has no target.
std::vector<std::int32_t> targets_of(std::size_t rows, std::size_t classes) {
  std::mt19937 random(4);
  std::vector<std::int32_t> result;
  for (std::size_t i = 0; i < rows; ++i) {
    result.push_back(i == 1 ? -1 : static_cast<std::int32_t>(random() % classes));
  }
  return result;
}

template <class T>
class CrossEntropy : public ::testing::Test {};
TYPED_TEST_SUITE(CrossEntropy, KernelTypes, TypeNames);

constexpr float kGradientScale = 0.25F;
/// Losses come from exact logits by sums in fp32, whatever T is. bf16's exponentials are good to
/// 2^-21 of the exponent's size.
constexpr std::int64_t kLossReduction = 64;

TYPED_TEST(CrossEntropy, AgreesWithTheReference) {
  using T = TypeParam;
  struct Case {
    std::size_t classes, padding;
  };
  for (const Case c : {Case{1, 0}, {7, 1}, {37, 0}, {60, 4}, {1001, 0}, {8195, 125}}) {
    const std::size_t rows = c.classes > 2000 ? 2 : 5, columns = c.classes + c.padding;
    const auto logits = normal_values<T>(static_cast<std::int64_t>(rows * c.classes), 1, 4);
    const std::vector<std::int32_t> targets = targets_of(rows, c.classes);
    const Reference expected = reference(doubles_of(logits), targets, kGradientScale);
    std::vector<T> padded(rows * columns, static_cast<T>(1000.0F));  // would outdo all logits
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < c.classes; ++j) {
        padded[i * columns + j] = logits[i * c.classes + j];
      }
    }
    const DeviceArray<T> x(padded);
    const DeviceArray<std::int32_t> target(targets);
    const DeviceArray<float> losses(rows), again(rows);
    const auto run = [&](const DeviceArray<float>& to, bool with_gradient) {
      cross_entropy(x.data(), target.data(), static_cast<std::int64_t>(c.classes), to.data(),
                    with_gradient, kGradientScale, static_cast<std::int64_t>(rows),
                    static_cast<std::int64_t>(columns), nullptr);
    };
    run(again, false);
    EXPECT_EQ(x.doubles(), doubles_of(padded)) << "logits changed without a gradient asked for";
    run(losses, true);
    const std::string name = std::to_string(c.classes) + " classes";
    EXPECT_EQ(losses.values(), again.values());
    expect_near<float>(name + ", losses", losses.doubles(), expected.losses, 1, kLossReduction);
    const Doubles found = x.doubles();
    Doubles gradients;
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::size_t j = 0; j < columns; ++j) {
        if (j < c.classes) {
          gradients.push_back(found[i * columns + j]);
        } else {
          EXPECT_EQ(found[i * columns + j], 0) << "padding of row " << i;
        }
      }
    }
    expect_near<T>(name + ", gradients", gradients, expected.gradients,
                   static_cast<std::int64_t>(c.classes), 64);
  }
}

TYPED_TEST(CrossEntropy, InPartsAgreesWithTheReference) {
  using T = TypeParam;
  // The classes cut over ranks: columns of the rank, of which the last are padding.
  struct Part {
    std::int64_t first, used, columns;
  };
  const std::vector<Part> parts = {{0, 30, 32}, {30, 21, 32}, {51, 0, 32}};
  const std::size_t rows = 5, classes = 51;
  const auto logits = normal_values<T>(rows * classes, 1, 4);
  const std::vector<std::int32_t> targets = {0, -1, 29, 30, 50};
  const Reference expected = reference(doubles_of(logits), targets, kGradientScale);
  const DeviceArray<std::int32_t> target(targets);
  const DeviceArray<float> statistics(parts.size() * rows * 3);
  std::vector<std::vector<T>> own;
  for (const Part& part : parts) {
    // Padding that would outdo all logits.
    own.emplace_back(rows * static_cast<std::size_t>(part.columns), static_cast<T>(1000.0F));
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < part.used; ++j) {
        own.back()[i * static_cast<std::size_t>(part.columns) + static_cast<std::size_t>(j)] =
            logits[i * classes + static_cast<std::size_t>(part.first + j)];
      }
    }
    const DeviceArray<T> x(own.back());
    cross_entropy_part(x.data(), target.data(), part.first, part.used,
                       statistics.data() + (own.size() - 1) * rows * 3, rows, part.columns,
                       nullptr);
  }
  const std::vector<float> all = statistics.values();
  for (std::size_t i = 0; i < rows; ++i) {  // of the rank without classes
    EXPECT_EQ(all[(2 * rows + i) * 3], std::numeric_limits<float>::lowest());
    EXPECT_EQ(all[(2 * rows + i) * 3 + 1], 0.0F);
    EXPECT_EQ(all[(2 * rows + i) * 3 + 2], 0.0F);
  }
  Doubles gradients(rows * classes);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    const Part& part = parts[p];
    const DeviceArray<T> x(own[p]);
    const DeviceArray<float> losses(rows), again(rows);
    const auto join = [&](const DeviceArray<float>& to, bool with_gradient) {
      cross_entropy_join(x.data(), target.data(), part.first, part.used, statistics.data(),
                         static_cast<std::int64_t>(parts.size()), to.data(), with_gradient,
                         kGradientScale, rows, part.columns, nullptr);
    };
    join(again, false);
    EXPECT_EQ(x.doubles(), doubles_of(own[p]));
    join(losses, true);
    EXPECT_EQ(losses.values(), again.values());
    expect_near<float>("part " + std::to_string(p) + ", losses", losses.doubles(), expected.losses,
                       1, kLossReduction);
    const Doubles found = x.doubles();
    for (std::size_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < part.columns; ++j) {
        const double value =
            found[i * static_cast<std::size_t>(part.columns) + static_cast<std::size_t>(j)];
        if (j < part.used) {
          gradients[i * classes + static_cast<std::size_t>(part.first + j)] = value;
        } else {
          EXPECT_EQ(value, 0) << "padding " << j << " of part " << p;
        }
      }
    }
  }
  expect_near<T>("3 parts, gradients", gradients, expected.gradients, classes, 64);
}

TYPED_TEST(CrossEntropy, NothingToDo) {
  cross_entropy<TypeParam>(nullptr, nullptr, 10, nullptr, true, 1.0F, 0, 10, nullptr);
  cross_entropy_part<TypeParam>(nullptr, nullptr, 0, 10, nullptr, 0, 10, nullptr);
  cross_entropy_join<TypeParam>(nullptr, nullptr, 0, 10, nullptr, 2, nullptr, true, 1.0F, 0, 10,
                                nullptr);
}

}  // namespace
}  // namespace scone::cuda

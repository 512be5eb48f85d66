#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <set>

#include "checkpoint/export_names.h"
#include "checkpoint/table/row_format.h"
#include "model/main_model.h"
#include "parallel/error.h"
#include "tiny_run.h"

namespace scone {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

/// Writes a file of this header and `data_bytes` zeros; returns the error of opening it, "" for
/// none.
std::string error_of(const fs::path& path, const std::string& header, std::size_t data_bytes,
                     std::int64_t header_length = -1) {
  const auto length = header_length < 0 ? static_cast<std::int64_t>(header.size()) : header_length;
  {
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(&length), 8);
    file << header << std::string(data_bytes, '\0');
  }
  try {
    const SafetensorsFile file(path);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(Safetensors, ReadsBackWhatWasWritten) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "a.safetensors";
  const Tensor a = Tensor::zeros({2, 3}), b = Tensor::zeros({5});
  for (int i = 0; i < 6; ++i) a.data<float>()[i] = 0.1F * static_cast<float>(i);
  for (int i = 0; i < 5; ++i) b.data<float>()[i] = -1.0F / static_cast<float>(i + 1);
  const std::vector<NamedTensor> tensors = {{"z", a}, {"a", b}};
  write_safetensors(path, tensors, {{"format", "pt"}});
  const SafetensorsFile file(path);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  ASSERT_EQ(file.entries().size(), 2U);
  EXPECT_EQ(file.entries()[0].name, "z");
  EXPECT_EQ(file.entries()[0].begin % 64, 0);
  for (const NamedTensor& tensor : tensors) {
    const Tensor read = Tensor::zeros(tensor.tensor.shape());
    file.read(tensor.name, read);
    EXPECT_EQ(std::memcmp(read.raw(), tensor.tensor.raw(), read.bytes()), 0);
  }
  EXPECT_THROW(file.read("a", Tensor::zeros({6})), InputError);
  EXPECT_THROW(file.read("b", Tensor::zeros({5})), InputError);
}

TEST(Safetensors, RejectsBadFiles) {
  const TemporaryFolder folder;
  const fs::path path = folder.path() / "bad.safetensors";
  const std::string a = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  EXPECT_EQ(error_of(path, "{" + a + "}", 8), "");
  EXPECT_EQ(error_of(path, "{}", 0), "");
  EXPECT_THAT(error_of(path, "{" + a + "}", 8, 1 << 20), HasSubstr("header of 1048576 bytes"));
  EXPECT_THAT(error_of(path, "{" + a + "}", 8, std::numeric_limits<std::int64_t>::max()),
              HasSubstr("header of"));
  EXPECT_THAT(error_of(path, "[1]", 0), HasSubstr("does not begin"));
  EXPECT_THAT(error_of(path, "{" + a, 8), HasSubstr("no JSON"));
  EXPECT_THAT(error_of(path, "{" + a + "}", 7), HasSubstr("data_offsets"));
  EXPECT_THAT(error_of(path, "{" + a + "}", 9), HasSubstr("end at byte"));
  EXPECT_THAT(error_of(path, "{" + a + "," + a + "}", 8), HasSubstr("twice"));
  EXPECT_THAT(
      error_of(path, "{" + a + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})", 12),
      HasSubstr("overlaps"));
  EXPECT_THAT(
      error_of(path, "{" + a + R"(,"b":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}})", 20),
      HasSubstr("gap"));
  for (const char* tensor :
       {R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})",
        R"({"dtype":"X32","shape":[2],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})",
        R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})",
        R"({"dtype":"F32","shape":[2],"data_offsets":[0]})",
        R"({"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,8]})",
        R"({"shape":[2]})"}) {
    EXPECT_THAT(error_of(path, std::string("{\"a\":") + tensor + "}", 8), HasSubstr("tensor a"))
        << tensor;
  }
  std::ofstream(path, std::ios::trunc) << "abc";
  EXPECT_THROW(SafetensorsFile{path}, InputError);
  EXPECT_THROW(SafetensorsFile{folder.path() / "none"}, InputError);
}

TEST(ExportNames, NameEveryElementOnce) {
  for (const bool llama : {false, true}) {
    ModelConfig config;
    config.vocabulary_size = 8;
    config.main = {.width = 4, .layers = 11, .heads = 1, .ffw = 8, .context = 4};
    config.tie_embeddings = !llama;
    if (llama) config.main.activation = ActivationKind::swiglu;
    ParameterSet parameters(main_parameter_specs(config), Device::cpu);
    std::int64_t elements = 0;
    std::set<std::string> names;
    for (const NamedTensor& view : exported_views(parameters)) {
      elements += view.tensor.elements();
      EXPECT_TRUE(names.insert(view.name).second) << view.name;
    }
    std::int64_t expected = 0;  // the flat buffer may hold padding too
    for (std::size_t i = 0; i < parameters.size(); ++i) expected += parameters.value(i).elements();
    EXPECT_EQ(elements, expected);
  }
  EXPECT_EQ(export_names("main.blocks.10.attention.qkv.weight")[1],
            "model.layers.10.self_attn.k_proj.weight");
  EXPECT_EQ(export_names("fgram.final_norm.gain")[0], "model.norm.weight");
  EXPECT_EQ(export_names("fgram.blocks.0.ffw_norm.gain")[0],
            "model.layers.0.post_attention_layernorm.weight");
  EXPECT_THROW(export_names("main.unknown"), std::out_of_range);
}

TEST(RowFormat, RoundsToNearestEven) {
  const auto round_trip = [](RowType type, float value) {
    std::byte stored[4];
    float back = 0;
    encode_row(type, std::span(&value, 1), stored);
    decode_row(type, stored, std::span(&back, 1));
    return back;
  };
  EXPECT_EQ(round_trip(RowType::bf16, 1.0F + 0x1p-8F), 1.0F);  // tie to even
  EXPECT_EQ(round_trip(RowType::bf16, 1.0F + 3 * 0x1p-8F), 1.0F + 0x1p-6F);
  EXPECT_EQ(round_trip(RowType::bf16, 1.0F + 0x1.02p-8F), 1.0F + 0x1p-7F);
  EXPECT_EQ(round_trip(RowType::fp16, 1.0F + 0x1p-11F), 1.0F);
  EXPECT_EQ(round_trip(RowType::fp16, 1.0F + 3 * 0x1p-11F), 1.0F + 0x1p-9F);
  EXPECT_EQ(round_trip(RowType::fp16, 65504.0F), 65504.0F);
  EXPECT_TRUE(std::isinf(round_trip(RowType::fp16, 65520.0F)));
  EXPECT_EQ(round_trip(RowType::fp16, -0x1p-24F), -0x1p-24F);
  EXPECT_EQ(round_trip(RowType::fp16, 0x1p-25F), 0.0F);
  EXPECT_TRUE(std::isnan(round_trip(RowType::fp16, std::nanf(""))));
  EXPECT_TRUE(std::isnan(round_trip(RowType::bf16, std::nanf(""))));
  // Every finite 16-bit number comes back as itself.
  for (const RowType type : {RowType::bf16, RowType::fp16}) {
    for (std::uint32_t bits = 0; bits < 65536; ++bits) {
      const auto stored = static_cast<std::uint16_t>(bits);
      float value = 0;
      decode_row(type, reinterpret_cast<const std::byte*>(&stored), std::span(&value, 1));
      if (!std::isfinite(value)) continue;
      std::uint16_t again = 0;
      encode_row(type, std::span(&value, 1), reinterpret_cast<std::byte*>(&again));
      ASSERT_EQ(again, stored) << name_of(type);
    }
  }
  EXPECT_EQ(record_bytes(RowType::fp32, 16), 64);
  EXPECT_EQ(record_bytes(RowType::bf16, 33), 128);
}

}  // namespace
}  // namespace scone

#include "data/hdf5_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "parallel/error.h"
#include "shard_writer.h"

namespace scone {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<float> ramp(std::size_t size) {
  std::vector<float> values(size);
  std::iota(values.begin(), values.end(), 0.5f);
  return values;
}

TEST(Hdf5File, KeepsDatasetsAndAttributes) {
  const TemporaryFolder folder;
  const auto values = ramp(12);
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.set_attribute("name", "first");
    file.set_attribute("name", "sec\xC3\xB6nd");  // replaces
    file.set_attribute("empty", "");
    file.set_attribute("count", std::int64_t{1} << 40);
    file.write("/group/deeper/values", H5T_NATIVE_FLOAT, {4, 3}, values.data());
    file.create_dataset("parts", H5T_NATIVE_INT64, {5});
    const std::vector<std::int64_t> part{7, 8};
    file.write_part("parts", H5T_NATIVE_INT64, 0, 2, part.data());
    file.write_part("parts", H5T_NATIVE_INT64, 2, 2, part.data());
    file.write_part("parts", H5T_NATIVE_INT64, 4, 1, part.data());
    file.write("none", H5T_NATIVE_INT64, {0}, nullptr);
    file.close();
  }
  Hdf5File opened = Hdf5File::open(folder / "a.h5");
  const Hdf5File file = std::move(opened);
  EXPECT_EQ(file.path(), folder / "a.h5");
  EXPECT_EQ(file.string_attribute("name"), "sec\xC3\xB6nd");
  EXPECT_EQ(file.string_attribute("empty"), "");
  EXPECT_EQ(file.integer_attribute("count"), std::int64_t{1} << 40);
  EXPECT_TRUE(file.has_attribute("name"));
  EXPECT_FALSE(file.has_attribute("other"));
  EXPECT_TRUE(file.has_dataset("group/deeper/values"));
  EXPECT_FALSE(file.has_dataset("group/values"));
  EXPECT_THAT(file.dataset_names(), ElementsAre("group/deeper/values", "none", "parts"));
  EXPECT_THAT(file.dataset_shape("group/deeper/values"), ElementsAre(4, 3));
  std::vector<float> read(12);
  file.read("group/deeper/values", H5T_NATIVE_FLOAT, read.data());
  EXPECT_EQ(read, values);
  std::vector<double> rows(6);  // converted on the way
  file.read("group/deeper/values", H5T_NATIVE_DOUBLE, rows.data(), 1, 2);
  EXPECT_THAT(rows, ElementsAre(3.5, 4.5, 5.5, 6.5, 7.5, 8.5));
  std::vector<std::int64_t> parts(5);
  file.read("parts", H5T_NATIVE_INT64, parts.data());
  EXPECT_THAT(parts, ElementsAre(7, 8, 7, 8, 7));
  EXPECT_THAT(file.dataset_shape("none"), ElementsAre(0));
  file.read("none", H5T_NATIVE_INT64, nullptr);
  EXPECT_THROW(file.read("parts", H5T_NATIVE_INT64, parts.data(), 4, 2), std::out_of_range);
}

TEST(Hdf5File, OffsetsOfContiguousDatasetsPointAtTheirBytes) {
  const TemporaryFolder folder;
  const auto values = ramp(100);
  Hdf5File::create(folder / "a.h5").write("v", H5T_NATIVE_FLOAT, {100}, values.data());
  const std::int64_t offset = Hdf5File::open(folder / "a.h5").dataset_offset("v");
  ASSERT_GE(offset, 0);
  const std::string bytes = bytes_of_file(folder / "a.h5");
  ASSERT_GE(bytes.size(), static_cast<std::size_t>(offset) + 400);
  EXPECT_EQ(std::memcmp(bytes.data() + offset, values.data(), 400), 0);
}

TEST(Hdf5File, EqualContentGivesEqualBytes) {
  const TemporaryFolder folder;
  const auto values = ramp(1000);
  for (const char* name : {"a.h5", "b.h5"}) {
    Hdf5File file = Hdf5File::create(folder / name);
    file.set_attribute("name", "value");
    file.write("group/v", H5T_NATIVE_FLOAT, {1000}, values.data());
    file.close();
    std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // times in the file are seconds
  }
  EXPECT_EQ(bytes_of_file(folder / "a.h5"), bytes_of_file(folder / "b.h5"));
}

TEST(Hdf5File, ErrorsNameFileAndObject) {
  const TemporaryFolder folder;
  const auto values = ramp(10'000);
  {
    Hdf5File file = Hdf5File::create(folder / "a.h5");
    file.set_attribute("word", "x");
    file.set_attribute("number", std::int64_t{1});
    file.write("v", H5T_NATIVE_FLOAT, {10'000}, values.data());
  }
  const auto message_of = [](const auto& action) -> std::string {
    try {
      action();
    } catch (const InputError& error) {
      return error.what();
    }
    return "no InputError";
  };
  const Hdf5File file = Hdf5File::open(folder / "a.h5");
  float value = 0;
  EXPECT_THAT(message_of([&] { file.string_attribute("none"); }), HasSubstr("none"));
  EXPECT_THAT(message_of([&] { file.string_attribute("number"); }), HasSubstr("number"));
  EXPECT_THAT(message_of([&] { file.integer_attribute("word"); }), HasSubstr("a.h5"));
  EXPECT_THAT(message_of([&] { file.read("w", H5T_NATIVE_FLOAT, &value); }), HasSubstr("'w'"));
  EXPECT_THAT(message_of([&] { file.dataset_shape("w"); }), HasSubstr("'w'"));
  EXPECT_THAT(message_of([&] { Hdf5File::open(folder / "none.h5"); }), HasSubstr("none.h5"));
  const std::string bytes = bytes_of_file(folder / "a.h5");
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{6}, std::size_t{700}, bytes.size() - 1}) {
    std::ofstream(folder / "cut.h5", std::ios::binary) << bytes.substr(0, size);
    EXPECT_THAT(message_of([&] { Hdf5File::open(folder / "cut.h5"); }), HasSubstr("cut.h5"))
        << size;
  }
  EXPECT_THROW(Hdf5File::create(folder / "none/a.h5"), std::runtime_error);
}

}  // namespace
}  // namespace scone

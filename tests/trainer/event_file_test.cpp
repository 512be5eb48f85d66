#include "trainer/tensorboard/event_file.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "trainer/tensorboard/crc32c.h"
#include "trainer/tensorboard/event.h"

namespace scone {
namespace {

using testing::HasSubstr;

std::string bytes_of(const std::vector<int>& values) { return {values.begin(), values.end()}; }

class EventFileTest : public testing::Test {
 protected:
  ~EventFileTest() override { std::filesystem::remove(file_); }
  EventFilePart part_of(const std::string& bytes, std::int64_t last_step) {
    std::ofstream(file_, std::ios::binary | std::ios::trunc) << bytes;
    return part_up_to_step(file_, last_step);
  }
  const std::filesystem::path file_ =
      std::filesystem::path(testing::TempDir()) / fmt::format("scone_event_file_test.{}", getpid());
};

TEST(Crc32c, IsThatOfTheStandard) {
  // The check value of CRC-32C, and those of RFC 3720, B.4.
  EXPECT_EQ(crc32c("123456789"), 0xE3069283);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AA);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43);
  EXPECT_EQ(crc32c(""), 0U);
}

TEST(Event, HasTheFieldsOfItsMessages) {
  // 1.0 is 0x3FF0000000000000, 0.5F is 0x3F000000; keys are number * 8 + wire type.
  const std::string one = bytes_of({0x09, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F});
  EXPECT_EQ(encode_file_version(1.0), one + "\x1A\x0D" + "brain.Event:2");
  EXPECT_EQ(encode_session_start(1.0, 300), one + bytes_of({0x10, 0xAC, 0x02, 0x3A, 2, 0x08, 1}));
  const std::vector<Scalar> scalars = {{"loss", 0.5F}};
  EXPECT_EQ(encode_scalars(1.0, 3, scalars), one +
                                                 bytes_of({0x10, 3, 0x2A, 13, 0x0A, 11, 0x0A, 4}) +
                                                 "loss" + bytes_of({0x15, 0, 0, 0, 0x3F}));
}

TEST(Event, ItsStepIsRead) {
  const std::vector<Scalar> scalars = {{"a name", 1.5F}, {std::string(300, 'x'), std::nanf("")}};
  for (const std::int64_t step : {std::int64_t{1}, std::int64_t{127}, std::int64_t{128},
                                  std::int64_t{1} << 40, std::int64_t{1} << 62})
    EXPECT_EQ(step_of_event(encode_scalars(1e9, step, scalars)), step);
  EXPECT_EQ(step_of_event(encode_file_version(1e9)), 0);
  const std::string event = encode_scalars(1e9, 5, scalars);
  EXPECT_THROW(step_of_event(event.substr(0, event.size() - 1)), std::runtime_error);
  EXPECT_THROW(step_of_event("\x10\xFF"), std::runtime_error);
  EXPECT_THROW(step_of_event("\x13"), std::runtime_error);
}

TEST_F(EventFileTest, IsCutBeforeLaterSteps) {
  std::string bytes = frame_event(encode_file_version(1));
  std::vector<std::size_t> ends = {bytes.size()};  // of step 0, 1, ..
  for (std::int64_t step = 1; step <= 5; ++step) {
    bytes += frame_event(encode_scalars(1, step, {}));
    ends.push_back(bytes.size());
  }
  for (std::int64_t last = 0; last <= 6; ++last) {
    const EventFilePart part = part_of(bytes, last);
    EXPECT_EQ(part.with_steps, std::min<std::int64_t>(last, 5));
    EXPECT_EQ(part.bytes, ends[static_cast<std::size_t>(part.with_steps)]);
    EXPECT_FALSE(part.broken);
  }
}

TEST_F(EventFileTest, IsCutBeforeARecordThatIsBroken) {
  const std::string first = frame_event(encode_file_version(1)),
                    bytes = first + frame_event(encode_scalars(1, 1, {}));
  for (std::size_t size = first.size() + 1; size < bytes.size(); ++size) {
    const EventFilePart part = part_of(bytes.substr(0, size), 9);
    EXPECT_EQ(part.bytes, first.size());
    EXPECT_THAT(part.broken.value_or(""), HasSubstr("does not end")) << size;
  }
  for (std::size_t at = first.size(); at < bytes.size(); ++at) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    const EventFilePart part = part_of(changed, 9);
    EXPECT_EQ(part.bytes, first.size()) << at;
    EXPECT_THAT(part.broken.value_or(""), HasSubstr("is not its own")) << at;
  }
  EXPECT_EQ(part_of("", 9).bytes, 0U);
  EXPECT_THROW(part_up_to_step("/no/such/file", 9), std::runtime_error);
}

}  // namespace
}  // namespace scone

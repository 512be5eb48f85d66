#include "checkpoint/table/row_source.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstddef>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>

#include "parallel/error.h"
#include "tiny_table.h"

namespace scone {
namespace {

using testing::HasSubstr;

constexpr TableAccess kAll[] = {TableAccess::ram, TableAccess::mmap, TableAccess::direct};

class RowSourceTest : public ::testing::Test {
 protected:
  TemporaryFolder folder_;
  std::string fallback_;

  TableLayout write(RowType type, std::int64_t width, std::int64_t rows, std::int64_t most_bytes) {
    const TableLayout layout = make_table_layout(type, width, rows, most_bytes, "some");
    test::write_rows(folder_.path(), layout);
    return layout;
  }
  std::unique_ptr<RowSource> open(const TableLayout& layout, const RowSourceOptions& options) {
    return open_rows(folder_.path(), layout, options, fallback_);
  }
};

/// Each place is taken once, with the bytes of its row.
void expect_rows(const RowSource& source, const TableLayout& layout,
                 const std::vector<std::int64_t>& ids) {
  std::vector<int> taken(ids.size());
  std::size_t wrong = 0;
  std::vector<std::byte> expected(static_cast<std::size_t>(layout.bytes_of_record()));
  source.read(ids, [&](std::size_t i, const std::byte* record) {
    ++taken[i];
    encode_row(layout.type, test::row_of(ids[i], layout.width), expected.data());
    wrong += std::memcmp(expected.data(), record, expected.size()) != 0 ? 1 : 0;
  });
  EXPECT_EQ(wrong, 0);
  EXPECT_THAT(taken, testing::Each(1));
}

std::vector<std::int64_t> random_ids(std::size_t count, std::int64_t rows, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::int64_t> ids(count);
  for (auto& id : ids) id = static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(rows));
  return ids;
}

TEST_F(RowSourceTest, AgreeByteForByte) {
  for (const std::int64_t width : {1, 48, 700}) {
    for (const std::int64_t most_bytes : {1, 20000, 1 << 30}) {  // a file a row, several, one
      const std::int64_t rows = most_bytes == 1 ? 60 : 900;
      std::filesystem::remove_all(folder_.path() / "table");
      const TableLayout layout = write(RowType::bf16, width, rows, most_bytes);
      for (const TableAccess access : kAll) {
        for (const std::int64_t cache : {0, 10000, 1 << 30}) {
          SCOPED_TRACE(testing::Message() << name_of(access) << " " << width << " " << cache);
          const auto source = open(layout, {access, 4, cache});
          EXPECT_TRUE(source->access() == access || !fallback_.empty());
          expect_rows(*source, layout, {});
          expect_rows(*source, layout, {rows - 1});
          expect_rows(*source, layout, {0, rows - 1, 0, 0, rows - 1});
          expect_rows(*source, layout, std::vector<std::int64_t>(100, rows / 2));
          expect_rows(*source, layout, random_ids(3000, rows, 1));
        }
      }
    }
  }
}

TEST_F(RowSourceTest, ServeSeveralThreadsAtOnce) {
  const TableLayout layout = write(RowType::fp16, 200, 5000, 300000);
  for (const TableAccess access : kAll) {
    const auto source = open(layout, {access, 16, 100000});
    std::vector<std::jthread> threads;
    for (std::uint64_t thread = 0; thread < 8; ++thread) {
      threads.emplace_back([&, thread] {
        for (std::uint64_t round = 0; round < 20; ++round)
          expect_rows(*source, layout, random_ids(200, layout.rows, 100 * thread + round));
      });
    }
  }
}

TEST_F(RowSourceTest, ReadsOnAfterACallerThrew) {
  const TableLayout layout = write(RowType::fp32, 64, 2000, 1 << 30);
  for (const TableAccess access : kAll) {
    const auto source = open(layout, {access, 16, 1000});
    for (std::size_t good = 0; good < 300; good += 37) {
      std::size_t taken = 0;
      EXPECT_THROW(source->read(random_ids(300, layout.rows, good),
                                [&](std::size_t, const std::byte*) {
                                  if (taken++ == good) throw std::logic_error("enough");
                                }),
                   std::logic_error);
      expect_rows(*source, layout, random_ids(300, layout.rows, good + 1));
    }
  }
}

TEST_F(RowSourceTest, RefuseIdsOutOfRange) {
  const TableLayout layout = write(RowType::fp32, 8, 100, 1 << 30);
  for (const TableAccess access : kAll) {
    const auto source = open(layout, {access, 16, 0});
    for (const std::int64_t bad : {std::int64_t{-1}, std::int64_t{100}, INT64_MIN, INT64_MAX}) {
      const std::int64_t ids[] = {5, bad};
      int taken = 0;
      EXPECT_THROW(source->read(ids, [&](std::size_t, const std::byte*) { ++taken; }),
                   std::out_of_range);
      EXPECT_EQ(taken, 0);
    }
  }
}

TEST_F(RowSourceTest, RefuseBadOptionsAndNames) {
  const TableLayout layout = write(RowType::fp32, 8, 100, 1 << 30);
  for (const int depth : {0, -1, 4097})
    EXPECT_THROW(open(layout, {TableAccess::direct, depth, 0}), InputError) << depth;
  EXPECT_THROW(open(layout, {TableAccess::direct, 8, -1}), InputError);
  EXPECT_THROW(table_access_of("rom"), InputError);
  for (const TableAccess access : kAll) EXPECT_EQ(table_access_of(name_of(access)), access);
}

TEST_F(RowSourceTest, NameTheFileThatIsMissingOrEnds) {
  const TableLayout layout = write(RowType::fp32, 64, 100, 10000);
  const auto second = folder_.path() / table_file_name(1);
  const auto direct = open(layout, {TableAccess::direct, 8, 0});
  // Record 30 begins in the part that goes.
  std::filesystem::resize_file(second, 5000);
  if (direct->access() == TableAccess::direct) {
    const std::int64_t ids[] = {1, layout.rows_per_file + 10, 2};
    try {
      direct->read(ids, [](std::size_t, const std::byte*) {});
      ADD_FAILURE() << "a row that is not there was read";
    } catch (const std::runtime_error& error) {
      EXPECT_THAT(error.what(), HasSubstr("rows-00001.bin: at byte "));
      EXPECT_THAT(error.what(), HasSubstr("the file ends"));
    }
    const std::int64_t others[] = {1, 2};
    direct->read(others, [](std::size_t, const std::byte*) {});
  } else {
    std::printf("direct is refused here, so that its part is left out: %s\n", fallback_.c_str());
  }
  try {
    open(layout, {TableAccess::ram, 8, 0});
    ADD_FAILURE() << "a cut file was read";
  } catch (const std::runtime_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("rows-00001.bin: at byte "));
  }
  std::filesystem::remove(second);
  for (const TableAccess access : kAll) {
    try {
      open(layout, {access, 8, 0});
      ADD_FAILURE() << "a missing file was opened";
    } catch (const InputError& error) {
      EXPECT_THAT(error.what(), HasSubstr("rows-00001.bin: cannot be opened"));
    }
  }
}

TEST_F(RowSourceTest, SayWhatMemoryIsMissing) {
  TableLayout layout = write(RowType::fp32, 64, 100, 1 << 30);
  // More than any machine has; and nearly all of this one, which the kernel would grant.
  const std::int64_t machine = ::sysconf(_SC_PHYS_PAGES) * ::sysconf(_SC_PAGESIZE);
  for (const std::int64_t bytes : {std::int64_t{1} << 48, machine / 1000 * 998}) {
    layout.rows = bytes / layout.bytes_of_record();
    layout.rows_per_file = layout.rows;
    try {
      open(layout, {TableAccess::ram, 8, 0});
      ADD_FAILURE() << bytes << " bytes were read";
    } catch (const std::runtime_error& error) {
      EXPECT_THAT(error.what(), HasSubstr("not enough memory for the f-gram table of ")) << bytes;
    }
  }
}

#ifdef SCONE_HAS_LIBURING
/// From here on the kernel answers a system call of this process with an error: where its argument
/// `argument` has the bits `mask` (0: always).
bool refuse(int call, unsigned argument, unsigned mask, int error) {
  const auto offset = static_cast<unsigned>(offsetof(seccomp_data, args) + 8 * argument);
  const unsigned answer = SECCOMP_RET_ERRNO | static_cast<unsigned>(error);
  sock_filter code[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<unsigned>(call), 0, 3),
                        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offset),
                        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, mask, 0, 1),
                        BPF_STMT(BPF_RET | BPF_K, answer),
                        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  if (mask == 0) code[2] = BPF_STMT(BPF_RET | BPF_K, answer);
  const sock_fprog program{std::size(code), code};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

TEST_F(RowSourceTest, MapWhereDirectIsRefused) {
  const TableLayout layout = write(RowType::fp32, 64, 500, 20000);
  const auto open_refused = [&](int call, unsigned argument, unsigned mask, int error) {
    if (!refuse(call, argument, mask, error)) {
      std::fprintf(stderr, "no filter of system calls\n");
      std::_Exit(2);
    }
    const auto source = open(layout, {TableAccess::direct, 8, 0});
    expect_rows(*source, layout, random_ids(300, layout.rows, 4));
    std::fprintf(stderr, "%s: %s\n", name_of(source->access()), fallback_.c_str());
    std::_Exit(source->access() == TableAccess::mmap && !HasFailure() ? 0 : 1);
  };
  using testing::ExitedWithCode;
  EXPECT_EXIT(open_refused(__NR_io_uring_setup, 0, 0, EPERM), ExitedWithCode(0),
              "mmap: .*io_uring is refused: Operation not permitted");
  EXPECT_EXIT(open_refused(__NR_io_uring_setup, 0, 0, ENOSYS), ExitedWithCode(0),
              "mmap: .*io_uring is refused: Function not implemented");
  EXPECT_EXIT(open_refused(__NR_openat, 2, O_DIRECT, EINVAL), ExitedWithCode(0),
              "mmap: .*rows-00000.bin: its file system refuses O_DIRECT");
}

/// Reads go on without what the kernel may not grant: registered memory and files.
TEST_F(RowSourceTest, ReadWithoutRegisteredBuffers) {
  const TableLayout layout = write(RowType::fp32, 64, 500, 20000);
  const auto read_refused = [&] {
    if (!refuse(__NR_io_uring_register, 0, 0, ENOMEM)) std::_Exit(2);
    const auto source = open(layout, {TableAccess::direct, 8, 0});
    expect_rows(*source, layout, random_ids(300, layout.rows, 4));
    std::fprintf(stderr, "%s %s\n", name_of(source->access()), fallback_.c_str());
    std::_Exit(HasFailure() ? 1 : 0);
  };
  EXPECT_EXIT(read_refused(), testing::ExitedWithCode(0), "direct|io_uring is refused");
}

/// Whether this system has what direct reads need, asked of it without what is tested.
bool can_read_directly(const std::filesystem::path& file) {
  io_uring_params parameters{};
  const long ring = ::syscall(__NR_io_uring_setup, 8, &parameters);
  const int rows = ::open(file.c_str(), O_RDONLY | O_DIRECT);
  if (ring >= 0) ::close(static_cast<int>(ring));
  if (rows >= 0) ::close(rows);
  return ring >= 0 && rows >= 0;
}

/// Without a word where the system can; else all tests above have run on mmap, with the reason.
TEST_F(RowSourceTest, DirectIsDirectWhereTheSystemCan) {
  const TableLayout layout = write(RowType::fp32, 64, 500, 20000);
  const auto source = open(layout, {TableAccess::direct, 8, 0});
  const bool can = can_read_directly(folder_.path() / "table" / "rows-00000.bin");
  EXPECT_EQ(source->access() == TableAccess::direct, can) << fallback_;
  EXPECT_EQ(fallback_.empty(), can) << fallback_;
  if (!can) GTEST_SKIP() << "direct reads are not tested here: " << fallback_;
}
#else
TEST_F(RowSourceTest, MapWhereDirectIsNotBuilt) {
  const TableLayout layout = write(RowType::fp32, 64, 500, 20000);
  const auto source = open(layout, {TableAccess::direct, 8, 0});
  EXPECT_EQ(source->access(), TableAccess::mmap);
  EXPECT_THAT(fallback_, HasSubstr("built without liburing"));
  expect_rows(*source, layout, random_ids(300, layout.rows, 4));
}
#endif

}  // namespace
}  // namespace scone

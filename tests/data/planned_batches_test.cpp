// BatchStream where the ranks of a tensor-parallel group share a batch's f-grams, and with a
// planner.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <omp.h>

#include <array>
#include <atomic>
#include <functional>
#include <memory>
#include <set>
#include <stdexcept>

#include "data/batch_stream.h"
#include "data/fgram_vocabulary_builder.h"
#include "shard_writer.h"

namespace scone {
namespace {

class PlannedBatchesTest : public testing::Test {
 protected:
  PlannedBatchesTest() {
    write_shard(folder_ / "a.h5", random_documents(3, 60, 45, 50), 50);
    corpus_ = std::make_unique<TokenCorpus>(std::vector<std::filesystem::path>{folder_.path()});
    FgramBuildOptions options;
    options.size = 200;
    options.min_count = 2;
    const auto self = make_self_communicator();
    vocabulary_ = std::make_unique<FgramVocabulary>(build_vocabulary(*self, *corpus_, options));
  }

  static BatchStreamOptions options(const Part& data, const Part& share) {
    return {.sequence_length = 16,
            .batch_sequences = 13,
            .data = data,
            .share = share,
            .microbatch_sequences = 2,
            .seed = 11};
  }

  /// Runs body(world, stream of this rank) on ranks with both grids and a planner.
  void run(int ranks, int main_tp, int fgram_tp,
           const std::function<void(Communicator&, BatchStream&)>& body) const {
    run_as_threads(ranks, [&](Communicator& world) {
      omp_set_num_threads(1);
      const ProcessGrid main(world, main_tp, "main"), fgram(world, fgram_tp, "fgram");
      FgramPlanner planner(*vocabulary_, world, main, fgram);
      BatchStream stream(
          *corpus_, vocabulary_.get(),
          options({main.data_rank(), main.data_size()}, {main.tensor_rank(), main.tensor_size()}),
          {}, &planner);
      body(world, stream);
    });
  }

  TemporaryFolder folder_;
  std::unique_ptr<TokenCorpus> corpus_;
  std::unique_ptr<FgramVocabulary> vocabulary_;
};

TEST_F(PlannedBatchesTest, RanksShareTheFgramsOut) {
  BatchStream whole_stream(*corpus_, vocabulary_.get(), options({1, 2}, {}));
  for (int b = 0; b < 6; ++b) {
    const Batch whole = whole_stream.next();
    ASSERT_GT(whole.fgrams.size(), 8U);
    for (int parts = 1; parts <= 4; ++parts) {
      std::vector<std::int64_t> all;
      for (int part = 0; part < parts; ++part) {
        BatchStream stream(*corpus_, vocabulary_.get(), options({1, 2}, {part, parts}));
        for (int skipped = 0; skipped < b; ++skipped) stream.next();
        const Batch batch = stream.next();
        EXPECT_EQ(batch.tokens, whole.tokens);
        EXPECT_EQ(batch.targets, whole.targets);
        EXPECT_EQ(batch.match, whole.match);
        EXPECT_EQ(batch.local_targets, whole.local_targets);
        const std::set<std::int64_t> own(batch.fgrams.begin(), batch.fgrams.end());
        all.insert(all.end(), batch.fgrams.begin(), batch.fgrams.end());
        for (std::size_t i = 0; i < batch.match.size(); ++i) {
          const std::int32_t row = batch.row_of_position[i];
          if (batch.match[i] < 0)
            EXPECT_EQ(row, -1);
          else if (own.contains(batch.match[i]))
            EXPECT_EQ(batch.fgrams.at(static_cast<std::size_t>(row)), batch.match[i]);
          else
            EXPECT_EQ(row, -2);
        }
      }
      EXPECT_EQ(all, whole.fgrams);
    }
  }
}

/// The cell of each of the rank's f-grams, said naively.
std::vector<int> cells_of(const Batch& batch, std::int64_t microbatch_sequences) {
  const std::int64_t microbatches =
      (batch.sequences + microbatch_sequences - 1) / microbatch_sequences;
  std::vector<std::set<std::int64_t>> used(static_cast<std::size_t>(microbatches));
  for (std::int64_t s = 0; s < batch.sequences; ++s)
    for (std::int64_t i = 0; i < batch.length; ++i)
      used[static_cast<std::size_t>(s / microbatch_sequences)].insert(
          batch.match[static_cast<std::size_t>(s * batch.length + i)]);
  std::vector<int> cells;
  for (const std::int64_t id : batch.fgrams)
    cells.push_back((used.front().contains(id) ? 0 : BatchCells::used_later) +
                    (used.back().contains(id) ? 0 : BatchCells::done_early));
  return cells;
}

TEST_F(PlannedBatchesTest, CellsSayWhichMicrobatchesUseARow) {
  for (const auto& [ranks, main_tp, fgram_tp] :
       {std::array{1, 1, 1}, std::array{2, 1, 2}, std::array{4, 2, 1}, std::array{6, 3, 2}}) {
    SCOPED_TRACE(fmt::format("{} ranks, main tp {}, f-gram tp {}", ranks, main_tp, fgram_tp));
    std::atomic<int> seen[BatchCells::count] = {};
    run(ranks, main_tp, fgram_tp, [&](Communicator& world, BatchStream& stream) {
      for (int b = 0; b < 5; ++b) {
        const Batch batch = stream.next();
        const RowPlan& rows = batch.plan.rows;
        ASSERT_EQ(rows.cells, BatchCells::count);
        ASSERT_EQ(rows.asked.size(), batch.fgrams.size());
        std::vector<int> cells(batch.fgrams.size(), -1);
        std::size_t next = 0;
        for (std::size_t place = 0; place < rows.asked_counts.size(); ++place)
          for (std::int64_t k = 0; k < rows.asked_counts[place]; ++k)
            cells.at(static_cast<std::size_t>(rows.asked.at(next++))) =
                static_cast<int>(place) / world.size();
        EXPECT_EQ(cells, cells_of(batch, 2));
        for (const int cell : cells) ++seen[cell];
      }
    });
    for (const auto& count : seen) EXPECT_GT(count, 0);
  }
}

TEST_F(PlannedBatchesTest, StreamsGoAtAnyTime) {
  for (int batches = 0; batches <= 4; ++batches) {
    for (int repeat = 0; repeat < 5; ++repeat) {
      run(4, 2, 1, [&](Communicator&, BatchStream& stream) {
        for (int b = 0; b < batches; ++b) EXPECT_GT(stream.next().sequences, 0);
      });
    }
  }
}

TEST_F(PlannedBatchesTest, AnExceptionOnOneRankEndsAll) {
  for (int batches = 0; batches <= 4; ++batches) {
    for (int failing = 0; failing < 4; ++failing) {
      SCOPED_TRACE(fmt::format("rank {} fails after {} batches", failing, batches));
      try {
        run(4, 2, 2, [&](Communicator& world, BatchStream& stream) {
          for (int b = 0; b < batches; ++b) stream.next();
          if (world.rank() == failing) throw std::runtime_error("has had enough");
          for (;;) stream.next();  // ends by the failure alone
        });
        ADD_FAILURE() << "nothing was thrown";
      } catch (const std::runtime_error& error) {
        // The failing rank's own error, or, where its planner's cancelling came first, that.
        const std::string what = error.what();
        EXPECT_TRUE(what.find("has had enough") != std::string::npos ||
                    what.find("cancelled") != std::string::npos)
            << what;
      }
    }
  }
}

// The failing rank is a batch ahead: its planning thread waits for ranks that wait elsewhere.
TEST_F(PlannedBatchesTest, AnExceptionEndsAPlanThatNobodyJoins) {
  for (int batches = 0; batches <= 2; ++batches) {
    EXPECT_THROW(run(3, 1, 1,
                     [&](Communicator& world, BatchStream& stream) {
                       for (int b = 0; b < batches; ++b) stream.next();
                       if (world.rank() == 1) {
                         stream.next();
                         throw std::runtime_error("has had enough");
                       }
                       world.barrier();
                     }),
                 std::runtime_error);
  }
}

// The other ranks do not ask for batches any more, but end as if nothing had happened.
TEST_F(PlannedBatchesTest, AnExceptionOnOneRankLetsTheOthersEnd) {
  for (int batches = 0; batches <= 2; ++batches) {
    EXPECT_THROW(run(4, 1, 2,
                     [&](Communicator& world, BatchStream& stream) {
                       world.barrier();  // all streams are made
                       for (int b = 0; b < batches; ++b) stream.next();
                       if (world.rank() == 2) throw std::logic_error("has had enough");
                     }),
                 std::logic_error);
  }
}

}  // namespace
}  // namespace scone

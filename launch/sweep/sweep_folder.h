#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "launch/sweep/sweep_config.h"
#include "launch/sweep/sweep_points.h"

namespace scone {

// FOLDER/sweep.yaml                 copy of the sweep's file
// FOLDER/sweep.json                 the sweep's name and its points, with labels and figures
// FOLDER/points/NAME/               run folder of a point, and in it:
//   point.yaml                      what it is trained with; `scone train` takes it by hand too
//   training.json, bake.json, evaluation.json, baked-evaluation.json    results: the stage is done
//   bundle/                         of the bake
//   state.json                      what the local launcher last did: running, interrupted, failed
//   sweep.log                       what the point's commands printed
// FOLDER/slurm/                     lists of commands, jobs.json and logs of the Slurm launcher

enum class Stage { train, bake, evaluate, evaluate_baked };
const char* name_of(Stage stage);

/// One command of scone and the file that says it is done.
struct StageCommand {
  Stage stage = Stage::train;
  std::vector<std::string> arguments;  // of scone
  std::filesystem::path result;
  std::optional<Stage> after;  // the stage whose result it reads
};

/// What a folder's sweep.json says of a point.
struct RecordedPoint {
  std::string name, group;
  std::vector<PointLabel> labels;
  std::int64_t seed = 0;
  std::string metrics;                       // name of the file in its run folder
  std::vector<std::string> stages, results;  // names, and of their result files
  PointFigures figures;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(RecordedPoint, name, group, labels, seed, metrics, stages,
                                   results, figures)

struct SweepRecord {
  std::string name, run, launcher;  // launcher: local, slurm
  std::vector<RecordedPoint> points;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(SweepRecord, name, run, launcher, points)

/// state.json.
struct PointState {
  std::string state, stage;  // running, interrupted, failed
  int attempts = 0, exit_code = 0;
};
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(PointState, state, stage, attempts, exit_code)

std::filesystem::path point_folder(const std::filesystem::path& sweep_folder,
                                   const std::string& point);

/// Throws InputError where the sweep's folder exists and belongs to another sweep, or to none.
void check_owner(const SweepConfig& sweep);

/// Throws InputError naming each point that was begun with other settings, or evaluated or baked
/// otherwise, the keys, and what to do.
void check_unchanged(const SweepConfig& sweep, const std::vector<SweepPoint>& points);

/// Names of the points that the folder holds and the sweep has no more.
std::vector<std::string> points_left_out(const SweepConfig& sweep,
                                         const std::vector<SweepPoint>& points);

/// What sweep.json says of these points.
SweepRecord record_of(const SweepConfig& sweep, const std::vector<SweepPoint>& points);

/// Writes sweep.yaml, sweep.json and each point's point.yaml, whole or not at all. Throws
/// InputError where the folder cannot be written.
void write_folder(const SweepConfig& sweep, const std::vector<SweepPoint>& points);

/// The stages of a point, in order.
std::vector<StageCommand> stages_of(const SweepConfig& sweep, const SweepPoint& point);

/// Whether a stage's result is there; of a training also whether it came to its end. Throws
/// InputError where it cannot be read.
bool is_done(Stage stage, const std::filesystem::path& result);

/// Removes the results of the stages that read what `stage` will write anew.
void remove_results_after(Stage stage, const std::vector<StageCommand>& stages);

void write_state(const std::filesystem::path& point, const PointState& state);
/// nullopt: it was not begun by the local launcher.
std::optional<PointState> read_state(const std::filesystem::path& point);

/// Of a folder that `scone sweep` made. Throws InputError where it is none.
SweepRecord read_sweep_record(const std::filesystem::path& folder);

/// Writes a file whole or not at all. Throws InputError where it cannot be written.
void replace_file(const std::filesystem::path& path, const std::string& text);

}  // namespace scone

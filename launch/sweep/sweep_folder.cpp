#include "launch/sweep/sweep_folder.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <iterator>
#include <system_error>

#include "checkpoint/durable_file.h"
#include "parallel/error.h"

namespace scone {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

std::string read_text(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream), {}};
}

/// What evaluation.json must say for `sweep`'s evaluation of a point to be done.
std::vector<std::string> evaluation_data(const SweepConfig& sweep, const SweepPoint& point) {
  return sweep.evaluate.data.empty() ? point.config.data.validation : sweep.evaluate.data;
}

/// "key: BEFORE before, NOW now" of a result file.
void compare_result(const fs::path& file, const Json& result, const char* name, const char* key,
                    const Json& now, std::vector<std::string>& lines) {
  const Json before = result.value(name, Json());
  if (before != now)
    lines.push_back(fmt::format("{}: {} before, {} now; remove {} to do it again", key,
                                before.dump(), now.dump(), file.string()));
}

template <class Record>
Record read_record(const fs::path& path) {
  const Json json = read_json_file(path);
  try {
    return json.get<Record>();
  } catch (const Json::exception& error) {
    throw InputError(
        fmt::format("{}: not what `scone sweep` writes ({}); start the sweep again "
                    "to have it written anew",
                    path.string(), error.what()));
  }
}

}  // namespace

const char* name_of(Stage stage) {
  switch (stage) {
    case Stage::train:
      return "train";
    case Stage::bake:
      return "bake";
    case Stage::evaluate:
      return "eval";
    case Stage::evaluate_baked:
      return "eval-baked";
  }
  return "";
}

fs::path point_folder(const fs::path& sweep_folder, const std::string& point) {
  return sweep_folder / "points" / point;
}

void replace_file(const fs::path& path, const std::string& text) {
  const fs::path fresh = path.string() + ".new";
  std::ofstream file(fresh, std::ios::trunc);
  file << text;
  file.close();
  std::error_code error;
  if (file) fs::rename(fresh, path, error);
  if (!file || error)
    throw InputError(
        fmt::format("{} cannot be written; make room, or choose another folder", path.string()));
}

void check_owner(const SweepConfig& sweep) {
  const fs::path folder = sweep.folder, record = folder / "sweep.json";
  std::error_code error;
  if (!fs::exists(folder, error)) return;
  if (!fs::is_directory(folder, error))
    throw InputError(fmt::format("{}: folder: {} is a file; give another name", sweep.file.string(),
                                 sweep.folder));
  if (!fs::exists(record, error)) {
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.path().filename() != ".lock")
        throw InputError(
            fmt::format("{}: folder: {} is not empty and no sweep's ({} is in it); give another",
                        sweep.file.string(), sweep.folder, entry.path().filename().string()));
    return;
  }
  const auto owner = read_record<SweepRecord>(record);
  if (owner.name != sweep.name)
    throw InputError(
        fmt::format("{}: folder: {} belongs to the sweep '{}', and this one is '{}'; give this "
                    "sweep a folder of its own, or, where it was renamed, set name: {}",
                    sweep.file.string(), sweep.folder, owner.name, sweep.name, owner.name));
}

void check_unchanged(const SweepConfig& sweep, const std::vector<SweepPoint>& points) {
  std::string text;
  for (const SweepPoint& point : points) {
    const fs::path folder = point_folder(sweep.folder, point.name);
    std::vector<std::string> lines;
    std::error_code error;
    const bool begun =
        fs::exists(folder / "config.yaml", error) || fs::exists(folder / "checkpoints", error);
    if (begun && fs::exists(folder / "point.yaml", error))
      lines =
          changed_settings(load_run_config(folder / "point.yaml", {}, sweep.ranks()), point.config);
    if (!lines.empty())
      lines.push_back(fmt::format("set them back, or remove {} to run it anew", folder.string()));
    for (const StageCommand& stage : stages_of(sweep, point)) {
      if (!fs::exists(stage.result, error)) continue;
      const Json result = read_json_file(stage.result);
      if (stage.stage == Stage::bake)
        compare_result(stage.result, result, "dtype", "bake", *sweep.bake_dtype, lines);
      if (stage.stage == Stage::evaluate || stage.stage == Stage::evaluate_baked) {
        compare_result(stage.result, result, "data", "evaluate.data", evaluation_data(sweep, point),
                       lines);
        compare_result(stage.result, result, "most_tokens", "evaluate.tokens",
                       sweep.evaluate.tokens, lines);
      }
    }
    if (lines.empty()) continue;
    text += "\n  point " + point.name;
    for (const std::string& line : lines) text += "\n    " + line;
  }
  if (!text.empty())
    throw InputError(fmt::format(
        "{}: changed since {} was begun, whose results would no longer be of these settings:{}",
        sweep.file.string(), sweep.folder, text));
}

std::vector<std::string> points_left_out(const SweepConfig& sweep,
                                         const std::vector<SweepPoint>& points) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fs::path(sweep.folder) / "points", error)) {
    const std::string name = entry.path().filename().string();
    if (std::none_of(points.begin(), points.end(),
                     [&](const SweepPoint& point) { return point.name == name; }))
      names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

SweepRecord record_of(const SweepConfig& sweep, const std::vector<SweepPoint>& points) {
  SweepRecord record{sweep.name,
                     sweep.run,
                     std::holds_alternative<LocalLauncher>(sweep.launcher) ? "local" : "slurm",
                     {}};
  for (const SweepPoint& point : points) {
    RecordedPoint recorded{point.name,
                           point.group,
                           point.labels,
                           static_cast<std::int64_t>(point.config.run.seed),
                           point.config.logging.metrics,
                           {},
                           {},
                           point.figures};
    for (const StageCommand& stage : stages_of(sweep, point)) {
      recorded.stages.emplace_back(name_of(stage.stage));
      recorded.results.push_back(stage.result.filename().string());
    }
    record.points.push_back(std::move(recorded));
  }
  return record;
}

void write_folder(const SweepConfig& sweep, const std::vector<SweepPoint>& points) {
  const fs::path folder = sweep.folder;
  for (const SweepPoint& point : points) {
    const fs::path run = point_folder(folder, point.name);
    std::error_code error;
    fs::create_directories(run, error);
    if (error)
      throw InputError(fmt::format("{}: folder: {} cannot be made: {}; choose another",
                                   sweep.file.string(), run.string(), error.message()));
    replace_file(run / "point.yaml", to_yaml(point.config));
  }
  replace_file(folder / "sweep.yaml", read_text(sweep.file));
  replace_file(folder / "sweep.json", Json(record_of(sweep, points)).dump(1) + "\n");
}

std::vector<StageCommand> stages_of(const SweepConfig& sweep, const SweepPoint& point) {
  const fs::path folder = point_folder(sweep.folder, point.name);
  const auto stage = [&](Stage of, std::optional<Stage> after, const char* result,
                         std::vector<std::string> arguments) {
    StageCommand command{of, std::move(arguments), folder / result, after};
    command.arguments.insert(command.arguments.end(), {"--result", command.result.string()});
    return command;
  };
  const auto evaluation = [&](const fs::path& of) {
    std::vector<std::string> arguments = {"eval", of.string(), "--tokens",
                                          std::to_string(sweep.evaluate.tokens)};
    for (const std::string& path : evaluation_data(sweep, point))
      arguments.insert(arguments.end(), {"--data", path});
    if (point.config.compute.device == Device::cuda)
      arguments.insert(arguments.end(), {"--device", "cuda"});
    return arguments;
  };
  std::vector<StageCommand> stages;
  stages.push_back(
      stage(Stage::train, {}, "training.json", {"train", (folder / "point.yaml").string()}));
  stages.push_back(stage(Stage::evaluate, Stage::train, "evaluation.json", evaluation(folder)));
  if (!sweep.bake_dtype || point.config.model.fgram.layers == 0) return stages;
  std::vector<std::string> bake = {
      "bake",    folder.string(),   "--out",      (folder / "bundle").string(),
      "--dtype", *sweep.bake_dtype, "--overwrite"};
  if (point.config.compute.device == Device::cuda) bake.insert(bake.end(), {"--device", "cuda"});
  stages.push_back(stage(Stage::bake, Stage::train, "bake.json", bake));
  stages.push_back(stage(Stage::evaluate_baked, Stage::bake, "baked-evaluation.json",
                         evaluation(folder / "bundle")));
  return stages;
}

bool is_done(Stage stage, const fs::path& result) {
  std::error_code error;
  if (!fs::exists(result, error)) return false;
  const Json json = read_json_file(result);
  return stage != Stage::train || !json.value("stopped_early", true);
}

void remove_results_after(Stage stage, const std::vector<StageCommand>& stages) {
  for (const StageCommand& other : stages) {
    if (other.after != stage) continue;
    std::error_code error;
    fs::remove(other.result, error);
    remove_results_after(other.stage, stages);
  }
}

void write_state(const fs::path& point, const PointState& state) {
  replace_file(point / "state.json", Json(state).dump() + "\n");
}

std::optional<PointState> read_state(const fs::path& point) {
  const fs::path file = point / "state.json";
  std::error_code error;
  if (!fs::exists(file, error)) return std::nullopt;
  return read_record<PointState>(file);
}

SweepRecord read_sweep_record(const fs::path& folder) {
  const fs::path file = folder / "sweep.json";
  std::error_code error;
  if (!fs::exists(file, error))
    throw InputError(fmt::format(
        "{}: no folder of a sweep (there is no {}); give the `folder` of a sweep that was started",
        folder.string(), file.string()));
  return read_record<SweepRecord>(file);
}

}  // namespace scone

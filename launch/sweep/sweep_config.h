#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

namespace scone {

// A sweep, from the file to the report:
//
//   SweepConfig   what SWEEP.yaml says                                   (sweep_config.h)
//   SweepPoint    one run of it: name, settings, resolved RunConfig      (sweep_points.h)
//   SweepFolder   what of each point is done, on disk                    (sweep_folder.h)
//   run_locally / submit_to_slurm   runs them       (local_launcher.h, slurm_launcher.h)
//   PointStatus   how far a point is                                     (sweep_status.h)
//   PointResult   what came of it: CSV, JSON, a page      (sweep_results.h, sweep_page.h)
//
// A point's stages are commands of scone itself, each with a result file that is there once it is
// done: train, then bake where the sweep bakes, then eval of the checkpoint and of the bundle.

/// One key of the run configuration and the value it is given, as YAML.
struct Setting {
  std::string key, value;
  std::string place;  // "sweep.yaml:12", for errors
};

struct AxisValue {
  std::string label;
  std::vector<Setting> settings;  // of an axis named after a key one, else as many as it names
};

/// A list of values, each with all of the other axes'.
struct Axis {
  std::string name;  // a dotted key, or a name without a dot
  std::vector<AxisValue> values;
  std::string place;
};

/// An entry of `points`: settings, and axes and seeds of its own.
struct PointGroup {
  std::string name;  // empty: the only one, of a sweep without `points`
  std::vector<Setting> settings;
  std::vector<Axis> axes;
  std::optional<std::vector<std::uint64_t>> seeds;  // in place of the sweep's
  std::string place;
};

/// A setting that follows from others of its point: either `text` with {key} replaced by the key's
/// value, or the entry of `values` for the value of `from`.
struct DerivedSetting {
  std::string key, text, from;
  std::map<std::string, std::string> values;
  std::string place;
};

struct LocalLauncher {
  int jobs = 1, ranks = 1;
  int threads = 0;  // of each rank; 0: the cores over jobs x ranks
  bool oversubscribe = false;
  std::string mpirun;  // program and options; empty: Open MPI's, as launch/mpirun.sh calls it
};

struct SlurmLauncher {
  std::string account, partition;  // empty: Slurm's default
  std::string time;                // empty: array.sbatch's
  int nodes = 1, ntasks_per_node = 1;
  int cpus_per_task = 1;
  int gpus_per_node = 0;             // 0: none asked for
  int max_running = 0;               // tasks of an array at once; 0: no limit
  std::vector<std::string> options;  // of sbatch, further ones
  std::string script;  // empty: launch/slurm/array.sbatch beside the program's build folder
};

struct SweepConfig {
  std::filesystem::path file;
  std::string name;    // default: the file's, without .yaml; a folder belongs to one name
  std::string run;     // base run configuration
  std::string folder;  // of the sweep
  std::vector<Axis> axes;
  std::vector<PointGroup> groups;  // at least one
  std::vector<DerivedSetting> derived;
  std::optional<std::vector<std::uint64_t>> seeds;
  int retries = 1;  // of a stage that failed, in one start of the sweep
  struct {
    std::vector<std::string> data;  // empty: the point's data.validation
    std::int64_t tokens = 0;        // 0: all
  } evaluate;
  std::optional<std::string> bake_dtype;  // none: no bake
  std::variant<LocalLauncher, SlurmLauncher> launcher;

  /// Of each point's run.
  int ranks() const;
};

/// Reads a strict YAML file. Throws InputError with file, line, key and the nearest valid key.
SweepConfig load_sweep_config(const std::filesystem::path& file);

}  // namespace scone

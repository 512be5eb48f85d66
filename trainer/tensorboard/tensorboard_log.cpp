#include "trainer/tensorboard/tensorboard_log.h"

#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "parallel/error.h"
#include "trainer/tensorboard/event.h"
#include "trainer/tensorboard/event_file.h"

namespace scone {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view name_begin = "events.out.tfevents.";

std::vector<fs::path> event_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().filename().string().starts_with(name_begin)) files.push_back(entry.path());
  return files;
}

/// The seconds in a file's name; 0: it has none.
std::int64_t seconds_of(const fs::path& file) {
  const std::string name = file.filename().string();
  std::int64_t seconds = 0;
  std::from_chars(name.data() + name_begin.size(), name.data() + name.size(), seconds);
  return seconds;
}

void forget_later_steps(const fs::path& file, std::int64_t last_step) {
  const EventFilePart part = part_up_to_step(file, last_step);
  if (part.broken) spdlog::warn("{}; what follows is cut off", *part.broken);
  if (part.with_steps == 0) {
    fs::remove(file);
  } else if (part.bytes < fs::file_size(file)) {
    fs::resize_file(file, part.bytes);
  }
}

std::string host() {
  std::array<char, 256> name{};
  gethostname(name.data(), name.size() - 1);
  return name.data();
}

}  // namespace

TensorboardLog::TensorboardLog(const fs::path& folder, std::int64_t last_step) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const double wall_time = std::chrono::duration<double>(now).count();
  // TensorBoard reads the files in the order of their names: a later start's comes later, also one
  // in the same second.
  std::int64_t seconds = std::chrono::duration_cast<std::chrono::seconds>(now).count();
  std::string problem;
  try {
    fs::create_directories(folder);
    for (const fs::path& file : event_files(folder)) {
      seconds = std::max(seconds, seconds_of(file) + 1);
      forget_later_steps(file, last_step);
    }
    const fs::path file =
        folder / fmt::format("{}{:010}.{}.{}.0", name_begin, seconds, host(), getpid());
    out_.emplace(file, true);
    out_->add(frame_event(encode_file_version(wall_time)) +
              frame_event(encode_session_start(wall_time, last_step + 1)));
  } catch (const std::exception& error) {
    problem = error.what();
  }
  if (!problem.empty())
    throw InputError(fmt::format(
        "logging.tensorboard: {} cannot be written ({}); make room for it, or use false",
        folder.string(), problem));
}

void TensorboardLog::write(const StepMetrics& metrics) {
  std::vector<Scalar> scalars;
  const nlohmann::json numbers = to_json(metrics);
  for (const auto& [name, value] : numbers.items())
    if (value.is_number() && name != "step") scalars.push_back({name, value.get<float>()});
  out_->add(frame_event(encode_scalars(metrics.wall_time, metrics.step, scalars)));
}

}  // namespace scone

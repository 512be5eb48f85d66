#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

namespace scone {

/// "step-00001000".
std::string checkpoint_name(std::int64_t step);
/// True for the name of a finished checkpoint.
bool is_checkpoint_name(const std::string& name);

/// Checkpoints of a folder by step, from their names alone. One that a killed writer was about to
/// replace and had set aside counts where its step has no other. No folder: none; throws InputError
/// where it is there and cannot be read.
std::map<std::int64_t, std::filesystem::path> list_checkpoints(
    const std::filesystem::path& checkpoints);

/// The temporary folder that the checkpoint of a step is written in.
std::filesystem::path temporary_folder(const std::filesystem::path& checkpoints, std::int64_t step);

/// Makes the checkpoints folder, removes what it can of what killed writers left in it (a
/// checkpoint set aside is put back first), and makes the step's temporary folder. Throws
/// std::exception.
void prepare_checkpoint_folder(const std::filesystem::path& checkpoints, std::int64_t step);

/// Puts the finished temporary folder in its place, where an older checkpoint of the step may be,
/// durably. Returns the checkpoint's path. Throws std::runtime_error, NotSyncedError where it is in
/// its place; an older one stays then, in the temporary or the aside folder.
std::filesystem::path publish_checkpoint(const std::filesystem::path& checkpoints,
                                         std::int64_t step);

/// Whether the checkpoint of a step stays for good: a multiple of permanent_every (< 1: none is).
bool is_permanent(std::int64_t step, std::int64_t permanent_every);

/// Removes all checkpoints before `step` but the newest keep - 1 that are whole (all files of their
/// sizes), damaged ones among these, and the permanent ones.
/// keep < 1: removes none. Later ones stay: they belong to a run that
/// went back, because they were damaged, and are replaced as it comes past them.
void remove_old_checkpoints(const std::filesystem::path& checkpoints, std::int64_t step, int keep,
                            std::int64_t permanent_every);

}  // namespace scone

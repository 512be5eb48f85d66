#pragma once

#include <filesystem>

#include "checkpoint/checkpoint_manifest.h"

namespace scone {

/// Throws InputError where a run whose own manifest would be `own` cannot go on from a checkpoint
/// with manifest `saved`: names each key that was set otherwise, with the checkpoint's value and
/// the run's. A key whose value only follows from another one that differs (model.fgram.ffw from
/// model.main.width) is not named. Of an imported checkpoint the models and the tokenizer are
/// compared alone, and what belongs to the f-gram model only where both have one. The training data
/// are not compared beyond their tokenizer.
///
/// length_in_tokens: the run's length is given in tokens, so that its batch must stay.
void check_settings(const std::filesystem::path& checkpoint, const CheckpointManifest& saved,
                    const CheckpointManifest& own, bool length_in_tokens);

}  // namespace scone

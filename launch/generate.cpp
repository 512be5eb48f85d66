#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "launch/command.h"
#include "model/ops/ops.h"
#include "parallel/error.h"
#include "trainer/generation.h"
#include "trainer/loaded_model.h"

namespace scone {
namespace {

struct Arguments {
  std::string path;
  std::string prompt;
  std::int64_t max_tokens = 100;
  SamplingOptions sampling;
};

/// Bytes of `text` that end with a whole UTF-8 character.
std::size_t whole_characters(const std::string& text) {
  std::size_t begin = text.size();
  while (begin > 0 && text.size() - begin < 4) {
    const auto byte = static_cast<unsigned char>(text[--begin]);
    if ((byte & 0xC0) == 0x80) continue;
    const std::size_t length = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
    return begin + length <= text.size() ? text.size() : begin;
  }
  return text.size();
}

int run_generate(const Arguments& arguments, CommandContext& context) {
  if (!context.is_root()) return 0;
  Sampler sampler(arguments.sampling);
  const auto self = make_self_communicator();
  LoadedModel model = load_model(arguments.path, cpu_backend(), 1, {}, *self);
  const auto tokenizer = load_tokenizer(model.tokenizer_path);
  if (tokenizer->fingerprint() != model.tokenizer_fingerprint)
    throw InputError(
        fmt::format("{}: is tokenizer {}, but {} was trained with {}; put that one back",
                    model.tokenizer_path.string(), tokenizer->fingerprint(), model.path.string(),
                    model.tokenizer_fingerprint));
  std::vector<std::int32_t> prompt;
  tokenizer->encode(arguments.prompt, prompt);
  const bool stream = !context.json;
  if (stream) fmt::print("{}", arguments.prompt);
  std::string text, pending;
  const auto tokens = generate(model, prompt, arguments.max_tokens, tokenizer->end_of_document(),
                               sampler, [&](std::int32_t token) {
                                 pending += tokenizer->token_bytes(token);
                                 const std::size_t whole = whole_characters(pending);
                                 text += pending.substr(0, whole);
                                 if (stream) {
                                   fmt::print("{}", pending.substr(0, whole));
                                   std::fflush(stdout);
                                 }
                                 pending.erase(0, whole);
                               });
  if (stream) fmt::print("\n");
  if (context.json)
    context.print_result({{"prompt", arguments.prompt},
                          {"text", text},
                          {"prompt_tokens", prompt.size()},
                          {"tokens", tokens}});
  return 0;
}

}  // namespace

void add_generate(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("generate", "Text from a bundle (or a checkpoint), with a KV cache");
  command->add_option("path", arguments->path, "Bundle, run folder or checkpoint")->required();
  command->add_option("--prompt", arguments->prompt, "Text to go on from")->required();
  command->add_option("--max-tokens", arguments->max_tokens, "Most new tokens")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  SamplingOptions& sampling = arguments->sampling;
  command->add_option("--temperature", sampling.temperature, "0: always the most probable token")
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Draw from the K most probable tokens; 0: all")
      ->capture_default_str();
  command
      ->add_option("--top-p", sampling.top_p,
                   "Draw from the fewest tokens that have this probability together")
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "Seed of the draws")->capture_default_str();
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_generate(*arguments, context); };
  });
}

}  // namespace scone

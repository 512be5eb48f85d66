#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "data/tokenizer.h"
#include "launch/command.h"
#include "launch/inference_options.h"
#include "launch/option_checks.h"
#include "parallel/error.h"
#include "trainer/generation.h"
#include "trainer/loaded_model.h"

namespace scone {
namespace {

struct Arguments {
  std::string path;
  std::vector<std::string> prompts;
  std::string prompt_file, device = "cpu";
  GenerationOptions generation;
  TableArguments table;
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

/// The text of one sequence as its tokens come.
class TextStream {
 public:
  /// Adds a token; returns what is whole since then, which a character cut in two is not yet.
  std::string add(const std::string& token_bytes) {
    pending_ += token_bytes;
    std::string whole = pending_.substr(0, whole_characters(pending_));
    pending_.erase(0, whole.size());
    text_ += whole;
    return whole;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_, pending_;
};

std::vector<std::string> read_prompts(const Arguments& arguments) {
  std::vector<std::string> prompts = arguments.prompts;
  if (!arguments.prompt_file.empty()) {
    std::ifstream file(arguments.prompt_file);
    if (!file || std::filesystem::is_directory(arguments.prompt_file))
      throw InputError(fmt::format("{}: cannot be read; expected a text file with a prompt a line",
                                   arguments.prompt_file));
    for (std::string line; std::getline(file, line);) {
      if (line.empty())
        throw InputError(fmt::format("{}: line {} is empty; expected a prompt a line",
                                     arguments.prompt_file,
                                     prompts.size() + 1 - arguments.prompts.size()));
      prompts.push_back(line);
    }
  }
  if (prompts.empty())
    throw InputError(
        arguments.prompt_file.empty()
            ? "no prompt: give --prompt TEXT, or --prompt-file FILE"
            : fmt::format("{}: has no prompts; expected one a line", arguments.prompt_file));
  return prompts;
}

nlohmann::json describe(const GenerationTimes& times) {
  const double seconds = times.seconds();
  return {
      {"seconds", seconds},
      {"prefill_seconds", times.prefill_seconds},
      {"prompt_tokens_total", times.prompt_tokens},
      {"new_tokens", times.new_tokens},
      {"decode_steps", times.steps},
      {"milliseconds_per_token", times.milliseconds_per_step()},
      {"tokens_per_second", seconds > 0 ? static_cast<double>(times.new_tokens) / seconds : 0.0}};
}

int run_generate(const Arguments& arguments, CommandContext& context) {
  if (arguments.device != "cpu" && context.world.size() > 1)
    throw InputError("generate: --device cuda: one rank generates; run it without mpirun");
  if (!context.is_root()) return 0;
  const std::vector<std::string> prompts = read_prompts(arguments);
  const auto self = make_self_communicator();
  const ComputeDevice device = open_inference_device(arguments.device, *self);
  LoadedModel model =
      load_model(arguments.path, device.backend, 1, {}, *device.world, arguments.table.options());
  arguments.table.check_use(model);
  const auto tokenizer = load_tokenizer(model.tokenizer_path);
  if (tokenizer->fingerprint() != model.tokenizer_fingerprint)
    throw InputError(
        fmt::format("{}: is tokenizer {}, but {} was trained with {}; put that one back",
                    model.tokenizer_path.string(), tokenizer->fingerprint(), model.path.string(),
                    model.tokenizer_fingerprint));
  std::vector<std::vector<std::int32_t>> prompt_tokens(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) tokenizer->encode(prompts[i], prompt_tokens[i]);
  GenerationOptions options = arguments.generation;
  options.end_of_document = tokenizer->end_of_document();
  // One text is shown as it comes; of several each is shown when all are done.
  const bool stream = !context.json && prompts.size() == 1;
  std::vector<TextStream> texts(prompts.size());
  bool begun = false;
  const auto show_prompt = [&] {
    if (stream && !begun) fmt::print("{}", prompts[0]);
    begun = true;
  };
  const Generation made =
      generate(model, prompt_tokens, options, [&](std::size_t sequence, std::int32_t token) {
        const std::string whole = texts[sequence].add(tokenizer->token_bytes(token));
        show_prompt();
        if (!stream) return;
        fmt::print("{}", whole);
        std::fflush(stdout);
      });
  show_prompt();
  if (stream) fmt::print("\n");
  std::fflush(stdout);
  const std::int64_t context_tokens = model.config.main.context;
  std::int64_t cut = 0;  // texts that end where the context does
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const std::int64_t made_tokens = std::ssize(made.tokens[i]);
    cut += made_tokens < options.max_tokens &&
           std::ssize(prompt_tokens[i]) + made_tokens >= context_tokens;
  }
  if (cut > 0)
    fmt::print(stderr,
               "note: {} of {} texts ended at the model's context of {} tokens, prompt "
               "included, before --max-tokens {}\n",
               cut, prompts.size(), context_tokens, options.max_tokens);
  nlohmann::json sequences = nlohmann::json::array();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    if (!context.json && !stream)
      fmt::print("{}{}{}\n", i > 0 ? "\n" : "", prompts[i], texts[i].text());
    sequences.push_back({{"prompt", prompts[i]},
                         {"text", texts[i].text()},
                         {"prompt_tokens", prompt_tokens[i].size()},
                         {"tokens", made.tokens[i]}});
  }
  nlohmann::json result = describe(made.times);
  if (prompts.size() == 1)
    result.update(sequences[0]);
  else
    result["sequences"] = sequences;
  context.print_result(result);
  return 0;
}

}  // namespace

void add_generate(CLI::App& app, Action& action) {
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("generate", "Text from a bundle (or a checkpoint), with a KV cache");
  command->add_option("path", arguments->path, "Bundle, run folder or checkpoint")->required();
  command->add_option("--prompt", arguments->prompts, "Text to go on from; several times: a batch")
      ->allow_extra_args(false);
  command->add_option("--prompt-file", arguments->prompt_file, "Prompts, one a line");
  GenerationOptions& generation = arguments->generation;
  command->add_option("--max-tokens", generation.max_tokens, "Most new tokens of each text")
      ->check(at_least(0))
      ->capture_default_str();
  command->add_option("--batch", generation.batch, "Most texts generated together")
      ->check(at_least(1))
      ->capture_default_str();
  command
      ->add_option("--prefill-chunk", generation.prefill_chunk,
                   "Tokens of prompts computed at a time")
      ->check(at_least(1))
      ->capture_default_str();
  SamplingOptions& sampling = generation.sampling;
  command->add_option("--temperature", sampling.temperature, "0: always the most probable token")
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Draw from the K most probable tokens; 0: all")
      ->capture_default_str();
  command
      ->add_option("--top-p", sampling.top_p,
                   "Draw from the fewest tokens that have this probability together")
      ->capture_default_str();
  command
      ->add_option("--seed", sampling.seed,
                   "Seed of the draws of the first prompt; S + 1 of the "
                   "second, and so on")
      ->capture_default_str();
  add_device_option(*command, arguments->device);
  add_table_options(*command, arguments->table);
  command->callback([arguments, &action] {
    action = [arguments](CommandContext& context) { return run_generate(*arguments, context); };
  });
}

}  // namespace scone

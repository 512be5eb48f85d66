// Input: bundle.json, a zero byte, the first page of a file of rows without its padding, a zero
// byte, the first page of the index likewise, a zero byte, how many bytes of rows follow (16 bits),
// the rows, and the rest of the index.
#include <fstream>
#include <vector>

#include "checkpoint/table/fgram_table.h"
#include "checkpoint/table/index_layout.h"
#include "fuzz_input.h"
#include "parallel/error.h"

namespace {

/// The bundle's folder; it goes with the process.
struct Folder {
  Folder() { std::filesystem::create_directories(path / "table"); }
  ~Folder() {
    std::error_code error;
    std::filesystem::remove_all(path, error);
  }
  scone::NamedFile name;
  std::filesystem::path path = name.path().string() + ".bundle";
};

void write(const std::filesystem::path& path, std::string_view page, std::size_t padded,
           std::string_view rest) {
  std::string text(page);
  if (text.size() < padded) text.resize(padded, ' ');
  std::ofstream(path, std::ios::binary) << text << rest;
}

/// What stands before the next zero byte.
std::string_view next_text(std::string_view& input) {
  const std::string_view text = input.substr(0, input.find('\0'));
  input.remove_prefix(std::min(text.size() + 1, input.size()));
  return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view json = next_text(input), rows_page = next_text(input),
                         index_page = next_text(input);
  scone::FuzzInput numbers(reinterpret_cast<const std::uint8_t*>(input.data()), input.size());
  const auto row_bytes = numbers.take<std::uint16_t>();
  const std::string_view rest = numbers.rest(), rows = rest.substr(0, row_bytes);
  write(folder.path / "bundle.json", json, 0, {});
  write(folder.path / scone::table_file_name(0), rows_page, scone::kTableDataOffset, rows);
  write(folder.path / "table/index.bin", index_page, scone::kIndexPageBytes,
        rest.substr(rows.size()));
  for (const scone::TableAccess access : {scone::TableAccess::mmap, scone::TableAccess::ram}) {
    try {
      const scone::FgramTable table(folder.path, {access, 4, 0});
      if (table.rows() == 0) continue;
      const std::int64_t ids[] = {0, table.rows() - 1};
      std::vector<float> out(2 * static_cast<std::size_t>(table.width()));
      table.lookup(ids, out);
    } catch (const scone::InputError&) {
    }
  }
  return 0;
}

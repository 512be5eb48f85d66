// Input: an f-gram table's first page without its padding, a zero byte, and the records.
#include "checkpoint/fgram_table.h"
#include "fuzz_input.h"
#include "parallel/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::size_t zero = std::min(input.find('\0'), input.size());
  std::string page(input.substr(0, zero));
  if (zero < input.size()) {
    page.resize(scone::kTableDataOffset - 1, ' ');
    page += "\n";
    page += input.substr(zero + 1);
  }
  const scone::MemoryFile memory(page);
  try {
    const scone::TableLayout layout = scone::read_table_layout(memory.path());
    const nlohmann::json description = {{"files", {{{"name", memory.path().filename().string()}}}},
                                        {"dtype", scone::name_of(layout.type)},
                                        {"width", layout.width},
                                        {"rows", layout.rows}};
    const scone::FgramTable table(memory.path().parent_path(), description);
    if (table.rows() == 0) return 0;
    const std::int64_t ids[] = {0, table.rows() - 1};
    table.lookup(ids, scone::Tensor::zeros({2, table.width()}));
  } catch (const scone::InputError&) {
  }
  return 0;
}

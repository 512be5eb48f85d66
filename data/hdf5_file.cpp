#include "data/hdf5_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "parallel/error.h"

namespace scone {
namespace {

/// The process-wide lock that every use of the HDF5 library holds.
std::recursive_mutex& hdf5_mutex() {
  static std::recursive_mutex mutex;
  return mutex;
}

using Lock = std::lock_guard<std::recursive_mutex>;

/// An HDF5 identifier that is closed with its scope.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }
  bool valid() const { return id_ >= 0; }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

/// The library prints its own error stack otherwise (a setting of each thread where it was built
/// with threads), and its exit handler crashes after a close that failed on a full disk; files are
/// closed by their owners here.
void silence_library() {
  static thread_local const herr_t once =
      H5dont_atexit() + H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);
  (void)once;
}

[[noreturn]] void bad_object(const std::filesystem::path& path, const char* kind,
                             const std::string& name, const char* problem) {
  throw InputError(fmt::format("{}: {} '{}' {}; the file is damaged or of another kind",
                               path.string(), kind, name, problem));
}

void check_write(bool good, const std::filesystem::path& path, const std::string& name) {
  if (!good)
    throw std::runtime_error(
        fmt::format("{}: cannot write '{}'; is the disk full or read-only?", path.string(), name));
}

/// The library locks a file that it opens (flock), which file systems without locks refuse, many an
/// NFS among them. Files here are written under names of their own and read once they are whole.
Handle without_locks() {
  const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
  H5Pset_file_locking(access, false, true);
  return {access, H5Pclose};
}

std::vector<hsize_t> as_dims(const std::vector<std::int64_t>& shape) {
  return {shape.begin(), shape.end()};
}

Handle open_dataset(hid_t file, const std::filesystem::path& path, const std::string& name) {
  const hid_t id = H5Dopen2(file, name.c_str(), H5P_DEFAULT);
  if (id < 0) bad_object(path, "dataset", name, "is missing");
  return {id, H5Dclose};
}

std::vector<std::int64_t> shape_of(hid_t dataset) {
  const Handle space(H5Dget_space(dataset), H5Sclose);
  std::vector<hsize_t> dims(static_cast<std::size_t>(H5Sget_simple_extent_ndims(space)));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  return {dims.begin(), dims.end()};
}

Handle space_of(const std::vector<std::int64_t>& shape) {
  const auto dims = as_dims(shape);
  return {H5Screate_simple(static_cast<int>(dims.size()), dims.data(), nullptr), H5Sclose};
}

/// Shape and file space of `count` entries of axis 0 from `first`.
struct Selection {
  Selection(hid_t dataset, std::int64_t first, std::int64_t count,
            const std::filesystem::path& path, const std::string& name)
      : file(H5Dget_space(dataset), H5Sclose), shape(shape_of(dataset)) {
    if (!shape.empty()) {
      if (count < 0) count = shape[0] - first;
      if (first < 0 || first + count > shape[0])
        throw std::out_of_range(fmt::format("{}: '{}': entries {}..{} of {}", path.string(), name,
                                            first, first + count, shape[0]));
      shape[0] = count;
      std::vector<hsize_t> start(shape.size(), 0), extent = as_dims(shape);
      start[0] = static_cast<hsize_t>(first);
      elements = 1;
      for (const auto e : shape) elements *= e;
      if (elements > 0)
        H5Sselect_hyperslab(file, H5S_SELECT_SET, start.data(), nullptr, extent.data(), nullptr);
    }
  }
  Handle file;
  std::vector<std::int64_t> shape;
  std::int64_t elements = 1;
};

}  // namespace

Hdf5File Hdf5File::open(const std::filesystem::path& path) {
  const Lock lock(hdf5_mutex());
  silence_library();
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error))
    throw InputError(fmt::format("{}: no such file", path.string()));
  if (H5Fis_hdf5(path.c_str()) <= 0)
    throw InputError(fmt::format("{}: not an HDF5 file, or cut within its header", path.string()));
  const hid_t id = H5Fopen(path.c_str(), H5F_ACC_RDONLY, without_locks());
  if (id < 0)
    throw InputError(
        fmt::format("{}: cannot be opened as HDF5: truncated, or not readable", path.string()));
  return Hdf5File(path, id);
}

Hdf5File Hdf5File::create(const std::filesystem::path& path) {
  const Lock lock(hdf5_mutex());
  silence_library();
  const hid_t id = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, without_locks());
  if (id < 0)
    throw std::runtime_error(fmt::format(
        "{}: cannot be created; does its folder exist, and may it be written?", path.string()));
  return Hdf5File(path, id);
}

Hdf5File::Hdf5File(Hdf5File&& other) noexcept
    : path_(std::move(other.path_)), id_(std::exchange(other.id_, -1)) {}

Hdf5File::~Hdf5File() {
  const Lock lock(hdf5_mutex());
  if (id_ >= 0) H5Fclose(id_);
}

void Hdf5File::close() {
  const Lock lock(hdf5_mutex());
  if (id_ < 0) return;
  const bool flushed = H5Fflush(id_, H5F_SCOPE_GLOBAL) >= 0;
  const bool closed = H5Fclose(std::exchange(id_, -1)) >= 0;
  check_write(flushed && closed, path_, "/");
}

bool Hdf5File::has_attribute(const std::string& name) const {
  const Lock lock(hdf5_mutex());
  return H5Aexists(id_, name.c_str()) > 0;
}

bool Hdf5File::has_dataset(const std::string& name) const {
  const Lock lock(hdf5_mutex());
  const Handle dataset(H5Dopen2(id_, name.c_str(), H5P_DEFAULT), H5Dclose);
  return dataset.valid();
}

std::string Hdf5File::string_attribute(const std::string& name) const {
  const Lock lock(hdf5_mutex());
  const Handle attribute(H5Aopen(id_, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) bad_object(path_, "attribute", name, "is missing");
  const Handle type(H5Aget_type(attribute), H5Tclose);
  if (H5Tget_class(type) != H5T_STRING) bad_object(path_, "attribute", name, "is not a string");
  if (H5Tis_variable_str(type) > 0) {
    char* text = nullptr;
    if (H5Aread(attribute, type, &text) < 0 || text == nullptr)
      bad_object(path_, "attribute", name, "cannot be read");
    std::string value = text;
    H5free_memory(text);
    return value;
  }
  std::string value(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, value.data()) < 0)
    bad_object(path_, "attribute", name, "cannot be read");
  value.resize(value.find('\0') == std::string::npos ? value.size() : value.find('\0'));
  return value;
}

std::int64_t Hdf5File::integer_attribute(const std::string& name) const {
  const Lock lock(hdf5_mutex());
  const Handle attribute(H5Aopen(id_, name.c_str(), H5P_DEFAULT), H5Aclose);
  if (!attribute.valid()) bad_object(path_, "attribute", name, "is missing");
  const Handle type(H5Aget_type(attribute), H5Tclose);
  const Handle space(H5Aget_space(attribute), H5Sclose);
  std::int64_t value = 0;
  if (H5Tget_class(type) != H5T_INTEGER || H5Sget_simple_extent_npoints(space) != 1 ||
      H5Aread(attribute, H5T_NATIVE_INT64, &value) < 0)
    bad_object(path_, "attribute", name, "is not one integer");
  return value;
}

namespace {

void write_attribute(hid_t file, const std::filesystem::path& path, const std::string& name,
                     hid_t type, const void* value) {
  if (H5Aexists(file, name.c_str()) > 0) H5Adelete(file, name.c_str());
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(H5Acreate2(file, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT),
                         H5Aclose);
  check_write(attribute.valid() && H5Awrite(attribute, type, value) >= 0, path, name);
}

}  // namespace

void Hdf5File::set_attribute(const std::string& name, const std::string& value) {
  const Lock lock(hdf5_mutex());
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, value.size() + 1);
  H5Tset_cset(type, H5T_CSET_UTF8);
  write_attribute(id_, path_, name, type, value.c_str());
}

void Hdf5File::set_attribute(const std::string& name, std::int64_t value) {
  const Lock lock(hdf5_mutex());
  write_attribute(id_, path_, name, H5T_NATIVE_INT64, &value);
}

std::vector<std::int64_t> Hdf5File::dataset_shape(const std::string& name) const {
  const Lock lock(hdf5_mutex());
  return shape_of(open_dataset(id_, path_, name));
}

std::size_t Hdf5File::unsigned_element_bytes(const std::string& name) const {
  const Lock lock(hdf5_mutex());
  const Handle dataset = open_dataset(id_, path_, name);
  const Handle type(H5Dget_type(dataset), H5Tclose);
  const bool fits = H5Tget_class(type) == H5T_INTEGER && H5Tget_sign(type) == H5T_SGN_NONE &&
                    H5Tget_order(type) == H5T_ORDER_LE;
  return fits ? H5Tget_size(type) : 0;
}

bool Hdf5File::is_int64(const std::string& name) const {
  const Lock lock(hdf5_mutex());
  const Handle dataset = open_dataset(id_, path_, name);
  const Handle type(H5Dget_type(dataset), H5Tclose);
  return H5Tequal(type, H5T_STD_I64LE) > 0;
}

void Hdf5File::read(const std::string& name, hid_t memory_type, void* out, std::int64_t first,
                    std::int64_t count) const {
  const Lock lock(hdf5_mutex());
  const Handle dataset = open_dataset(id_, path_, name);
  const Selection selection(dataset, first, count, path_, name);
  if (selection.elements == 0) return;
  const Handle memory = space_of(selection.shape);
  if (H5Dread(dataset, memory_type, memory, selection.file, H5P_DEFAULT, out) < 0)
    bad_object(path_, "dataset", name, "cannot be read");
}

void Hdf5File::create_dataset(const std::string& name, hid_t type,
                              const std::vector<std::int64_t>& shape) {
  const Lock lock(hdf5_mutex());
  const Handle space = space_of(shape);
  const Handle links(H5Pcreate(H5P_LINK_CREATE), H5Pclose);
  H5Pset_create_intermediate_group(links, 1);
  const Handle creation(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_obj_track_times(creation, false);  // equal content, equal bytes
  H5Pset_layout(creation, H5D_CONTIGUOUS);
  H5Pset_alloc_time(creation, H5D_ALLOC_TIME_EARLY);
  H5Pset_fill_time(creation, H5D_FILL_TIME_NEVER);
  const Handle dataset(H5Dcreate2(id_, name.c_str(), type, space, links, creation, H5P_DEFAULT),
                       H5Dclose);
  check_write(dataset.valid(), path_, name);
}

void Hdf5File::write_part(const std::string& name, hid_t memory_type, std::int64_t first,
                          std::int64_t count, const void* data) {
  const Lock lock(hdf5_mutex());
  const Handle dataset = open_dataset(id_, path_, name);
  const Selection selection(dataset, first, count, path_, name);
  if (selection.elements == 0) return;
  const Handle memory = space_of(selection.shape);
  check_write(H5Dwrite(dataset, memory_type, memory, selection.file, H5P_DEFAULT, data) >= 0, path_,
              name);
}

void Hdf5File::write(const std::string& name, hid_t type, const std::vector<std::int64_t>& shape,
                     const void* data) {
  create_dataset(name, type, shape);
  write_part(name, type, 0, -1, data);
}

std::vector<std::string> Hdf5File::dataset_names() const {
  const Lock lock(hdf5_mutex());
  std::vector<std::string> names;
  auto visit = [](hid_t, const char* name, const H5O_info_t* info, void* data) -> herr_t {
    if (info->type == H5O_TYPE_DATASET)
      static_cast<std::vector<std::string>*>(data)->emplace_back(name);
    return 0;
  };
  if (H5Ovisit2(id_, H5_INDEX_NAME, H5_ITER_INC, visit, &names, H5O_INFO_BASIC) < 0)
    bad_object(path_, "group", "/", "cannot be listed");
  std::sort(names.begin(), names.end());
  return names;
}

std::int64_t Hdf5File::dataset_offset(const std::string& name) const {
  const Lock lock(hdf5_mutex());
  const haddr_t offset = H5Dget_offset(open_dataset(id_, path_, name));
  return offset == HADDR_UNDEF ? -1 : static_cast<std::int64_t>(offset);
}

}  // namespace scone

#include "model/ops/cpu/onednn.h"

#include <fmt/format.h>

#include <array>
#include <dnnl.hpp>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <unordered_map>

#include "model/ops/cpu/scratch.h"

namespace scone {
namespace {

struct ProductKey {
  std::int64_t m, n, k;
  bool accumulate;
  bool operator==(const ProductKey&) const = default;
};

struct HashOfKey {
  std::size_t operator()(const ProductKey& key) const {
    std::size_t hash = key.accumulate ? 1 : 0;
    for (const std::int64_t value : {key.m, key.n, key.k})
      hash = (hash ^ std::hash<std::int64_t>{}(value)) * 0x9E3779B97F4A7C15U;
    return hash;
  }
};

const dnnl::engine& engine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

/// One product's kernel, and memory objects that are pointed at its operands.
class PackedProduct {
 public:
  explicit PackedProduct(const ProductKey& key) {
    using dnnl::memory;
    const auto type = memory::data_type::bf16;
    const memory::desc a({key.m, key.k}, type, memory::format_tag::ab);
    const memory::desc b({key.k, key.n}, type, memory::format_tag::BA16a64b2a);
    const memory::desc c({key.m, key.n}, memory::data_type::f32, memory::format_tag::ab);
    dnnl::primitive_attr attributes;
    // oneDNN's own scratch memory would be shared by threads.
    attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    if (key.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0F);
      attributes.set_post_ops(sum);
    }
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(a, b, c), attributes,
                                                   engine());
    // Anything else would be oneDNN's reference, a thousand times slower.
    const std::string kernel = description.impl_info_str();
    if (kernel.find("brg") == std::string::npos)
      throw std::runtime_error(fmt::format(
          "oneDNN has no packed bf16 product [{}, {}] x [{}, {}] on this processor but {}; set "
          "SCONE_MAX_ISA=avx512, or use compute.dtype=fp32",
          key.m, key.k, key.k, key.n, kernel));
    product_ = dnnl::matmul(description);
    scratch_bytes_ = description.scratchpad_desc().get_size();
    a_ = memory(a, engine(), DNNL_MEMORY_NONE);
    b_ = memory(b, engine(), DNNL_MEMORY_NONE);
    c_ = memory(c, engine(), DNNL_MEMORY_NONE);
    scratch_ = memory(description.scratchpad_desc(), engine(), DNNL_MEMORY_NONE);
  }

  void run(const Bf16* a, const Bf16* b, float* c, void* scratch, dnnl_stream_t stream) {
    // The C interface: the C++ one makes a hash map a call.
    const auto point = [](const dnnl::memory& memory, const void* at) {
      check(dnnl_memory_set_data_handle(memory.get(), const_cast<void*>(at)));
    };
    point(a_, a);
    point(b_, b);
    point(c_, c);
    point(scratch_, scratch);
    const std::array<dnnl_exec_arg_t, 4> arguments = {{{DNNL_ARG_SRC, a_.get()},
                                                       {DNNL_ARG_WEIGHTS, b_.get()},
                                                       {DNNL_ARG_DST, c_.get()},
                                                       {DNNL_ARG_SCRATCHPAD, scratch_.get()}}};
    check(dnnl_primitive_execute(product_.get(), stream, static_cast<int>(arguments.size()),
                                 arguments.data()));
  }

  std::size_t scratch_bytes() const { return scratch_bytes_; }

 private:
  static void check(dnnl_status_t status) {
    if (status != dnnl_success)
      throw std::runtime_error(
          fmt::format("oneDNN refused a matrix product: status {}", static_cast<int>(status)));
  }

  dnnl::matmul product_;
  dnnl::memory a_, b_, c_, scratch_;
  std::size_t scratch_bytes_ = 0;
};

/// A thread's kernels.
struct Products {
  dnnl::stream stream{engine()};
  std::unordered_map<ProductKey, PackedProduct, HashOfKey> made;
};

}  // namespace

void gemm(bool transpose_a, bool transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
          float alpha, const float* a, std::int64_t lda, const float* b, std::int64_t ldb,
          float beta, float* c, std::int64_t ldc) {
  if (dnnl_sgemm(transpose_a ? 'T' : 'N', transpose_b ? 'T' : 'N', m, n, k, alpha, a, lda, b, ldb,
                 beta, c, ldc) != dnnl_success) {
    throw std::runtime_error("oneDNN refused a matrix product");
  }
}

bool has_bf16_products() {
  static const bool has = [] {
    const auto level = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
    const auto wanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
    return (level & wanted) == wanted;
  }();
  return has;
}

void packed_product(const Bf16* a, const Bf16* b, float* c, std::int64_t m, std::int64_t n,
                    std::int64_t k, bool accumulate) {
  static thread_local Products products;
  static thread_local Scratch scratch;
  const ProductKey key{m, n, k, accumulate};
  PackedProduct& product = products.made.try_emplace(key, key).first->second;
  product.run(a, b, c, scratch.get<std::byte>(static_cast<std::int64_t>(product.scratch_bytes())),
              products.stream.get());
}

}  // namespace scone

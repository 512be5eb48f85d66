#pragma once

namespace scone {

/// Whether the processor multiplies bf16, and SCONE_MAX_ISA lets it (cpu_backend.cpp).
bool has_bf16_products();

}  // namespace scone

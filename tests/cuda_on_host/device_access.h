#pragma once

namespace cuda_on_host {

/// Device memory may be touched while one exists, as kernels, copies and libraries of the device
/// do. Without one the address sanitizer reports who touches it: on a GPU it is not the host's.
class DeviceAccess {
 public:
  DeviceAccess();
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;
};

}  // namespace cuda_on_host

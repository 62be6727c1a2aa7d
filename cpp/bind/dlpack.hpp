// What of DLPack's C exchange API is called here: the layout of its structures, written down anew
// from the specification of DLPack 1.x (https://dmlc.github.io/dlpack; DLPack is under the Apache
// License 2.0).
#pragma once
#include <cstdint>

namespace thalweg::dlpack {

constexpr const char* capsule_name = "dlpack_exchange_api";
constexpr std::uint32_t major_version = 1;
constexpr std::int32_t cpu = 1;
constexpr std::uint8_t ieee_float = 2, signed_integer = 0;

struct Device {
    std::int32_t type, number;
};

struct ElementType {
    std::uint8_t code, bits;
    std::uint16_t lanes;
};

// Shape and strides, in elements, are the producer's and live as long as its tensor.
struct Tensor {
    void* data;
    Device device;
    std::int32_t ndim;
    ElementType dtype;
    std::int64_t *shape, *strides;
    std::uint64_t byte_offset;
};

struct Version {
    std::uint32_t major, minor;
};

// A tensor that keeps its memory until it is released.
struct Owned {
    Version version;
    void* context;
    void (*release)(Owned*);
    std::uint64_t flags;
    Tensor tensor;
};

// The table of functions that a library hangs on its tensor type, in a capsule.
struct ExchangeApi {
    Version version;
    ExchangeApi* previous; // of an older major version
    int (*allocate)(Tensor* prototype, Owned** out, void* context,
                    void (*set_error)(void* context, const char* kind, const char* message));
    int (*own)(void* object, Owned** out);
    int (*to_object)(Owned* tensor, void** out);
    int (*borrow)(void* object, Tensor* out); // may be null
    int (*current_stream)(std::int32_t device_type, std::int32_t device, void** out);
};

} // namespace thalweg::dlpack

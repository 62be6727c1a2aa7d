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

// The table of functions that a library hangs on its tensor type, in a capsule; the arguments of
// those that are not called are left out.
struct ExchangeApi {
    Version version;
    ExchangeApi* previous; // of an older major version
    void (*allocate)();
    void (*own)();
    void (*to_object)();
    int (*borrow)(void* object, Tensor* out); // may be null
    void (*current_stream)();
};

} // namespace thalweg::dlpack

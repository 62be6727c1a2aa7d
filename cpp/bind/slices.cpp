#include "slices.hpp"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "gil.hpp"
#include "thread/floatmode.hpp"

namespace thalweg {

namespace {

// From here on letting the GIL go is the lesser cost.
constexpr std::size_t long_slice = 65536;

struct Dense {
    char* data;
    std::size_t size;
    Dtype dtype;
    std::size_t bytes() const { return size * size_of(dtype); }
};

Dense dense(PyObject* array, const char* what) {
    const auto refuse = [&] {
        throw py::type_error(std::string(what) +
                             ": expected a dense, aligned float32 or float64 array, received " +
                             received(array));
    };
    if (!is_array(array)) refuse();
    const auto& found = fields(array);
    const auto dtype = dtype_of(found.descr);
    constexpr int needed =
        py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
    if (!dtype || *dtype == Dtype::float16 || (found.flags & needed) != needed) refuse();
    std::size_t size = 1;
    for (int i = 0; i < found.nd; ++i) size *= static_cast<std::size_t>(found.dimensions[i]);
    return {found.data, size, *dtype};
}

template <class Run> void run(std::size_t bytes, const Run& execute) {
    if (bytes < long_slice) {
        const DefaultFloatMode mode;
        execute();
        return;
    }
    const WithoutGil without_gil;
    const DefaultFloatMode mode;
    execute();
}

} // namespace

void add_in_order(const py::object& out, const py::tuple& slices, const Level& level) {
    const Dense to = dense(out.ptr(), "out");
    if ((fields(out.ptr()).flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) == 0)
        throw py::value_error("out: expected a writeable array, received a read-only one");
    if (slices.empty()) throw py::value_error("slices: expected at least one, received none");
    std::vector<const void*> data;
    const std::less<const char*> before;
    for (const py::handle each : slices) {
        const Dense slice = dense(each.ptr(), "slices");
        if (slice.dtype != to.dtype || slice.size != to.size)
            throw py::value_error(
                "slices: expected arrays of the dtype and size of out, received " +
                received(each.ptr()) + " of " + std::to_string(slice.size) + " elements");
        const bool meets =
            before(slice.data, to.data + to.bytes()) && before(to.data, slice.data + slice.bytes());
        if (meets && slice.data != to.data)
            throw py::value_error("slices: expected arrays that are out or apart from it, received "
                                  "one that overlaps it in part");
        data.push_back(slice.data);
    }
    const AddSlices add =
        to.dtype == Dtype::float32 ? level.add_slices_float32 : level.add_slices_float64;
    run(to.bytes() * data.size(), [&] { add(to.data, data.data(), data.size(), to.size); });
}

py::object block_sums(const py::object& values, const Level& level) {
    const Dense from = dense(values.ptr(), "values");
    const std::size_t count = (from.size + norm_block - 1) / norm_block;
    py::array_t<double> sums(static_cast<py::ssize_t>(count));
    double* to = sums.mutable_data();
    const SumBlocks sum =
        from.dtype == Dtype::float32 ? level.sum_blocks_float32 : level.sum_blocks_float64;
    run(from.bytes(), [&] { sum(from.data, from.size, to); });
    return sums;
}

} // namespace thalweg

#include "array.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <vector>

#include "thread/floatmode.hpp"
#include "thread/pages.hpp"

namespace thalweg {

namespace {

using py::detail::npy_api;
constexpr int writeable = npy_api::NPY_ARRAY_WRITEABLE_;
constexpr int npy_half = 23; // pybind11 has no name for it

constinit Imported masked_array("numpy.ma", "MaskedArray");
std::atomic<PyTypeObject*> ndarray = nullptr;

// Exact search for elements that share memory is done up to this many of them.
constexpr py::ssize_t overlap_limit = 1 << 20;

std::string type_name(PyObject* value) {
    const std::string module =
        py::str(py::getattr(py::type::of(value), "__module__", py::str("builtins")));
    const std::string name = py::str(py::type::of(value).attr("__qualname__"));
    return module == "builtins" || module == "numpy" ? name : module + "." + name;
}

constexpr std::size_t huge_page = std::size_t{2} << 20, large = std::size_t{4} << 20;
constexpr const char* zeros_name = "thalweg.zeros";

struct Memory {
    char* data;
    py::capsule owner;
};

// What begins `offset` bytes after a cache line, or after a huge page where it is large; no more
// than asked for where zeros of it may never be touched.
Memory allocate_after(std::size_t bytes, std::size_t offset, bool zeros) {
    if (zeros && bytes >= large) {
        auto made = std::make_unique<Zeros>(bytes + offset, huge_page);
        char* const data = made->data() + offset;
        py::capsule owner(made.get(), zeros_name,
                          [](void* memory) { delete static_cast<Zeros*>(memory); });
        static_cast<void>(made.release());
        return {data, std::move(owner)};
    }
    const std::size_t alignment = bytes < large ? cache_line : huge_page;
    const auto whole = [](std::size_t n, std::size_t of) { return (n + of - 1) / of * of; };
    const std::size_t length = std::max(alignment, whole(offset + bytes, alignment));
    char* const memory = allocate_aligned(length, alignment);
    // The few bytes that the offset pushes beyond the last huge page need none of their own.
    if (bytes >= large) use_huge_pages(memory, whole(bytes, huge_page));
    return {memory + offset, py::capsule(memory, free_aligned)};
}

bool is_masked(PyObject* value) { return is_instance(value, masked_array.get()); }

std::string dtype_text(PyObject* array) { return py::str(fields(array).descr); }

constinit Imported numpy_scalar("numpy", "generic");

// A tensor of torch: what makes an array of it.
std::string tensor_cure(py::handle tensor) {
    const auto text_of = [&](const char* name) {
        return std::string(py::str(py::getattr(tensor, name, py::none())));
    };
    const std::string layout = text_of("layout");
    // Sparse along the first axis, as an embedding's: with more there are elements, no rows.
    if (layout == "torch.sparse_coo" && tensor.attr("sparse_dim")().equal(py::int_(1)))
        return "; with g = g.coalesce() pass thalweg.RowGrad(g.indices()[0].numpy(), "
               "g.values().numpy()), or g.to_dense().numpy()";
    if (layout != "torch.strided" && layout != "None")
        return "; pass its .to_dense().detach().numpy()";
    std::string made = "; pass its .detach()";
    if (text_of("dtype") == "torch.bfloat16") return made + ".float().numpy()";
    if (text_of("device").rfind("cpu", 0) == 0 || text_of("device") == "None")
        return made + ".numpy(), which shares the memory";
    return made + ".cpu().numpy()";
}

// (ids, values) as other libraries hand out the rows of a table.
bool is_pair_of_rows(PyObject* value) {
    if (!PyTuple_Check(value) || PyTuple_GET_SIZE(value) != 2) return false;
    PyObject* const ids = PyTuple_GET_ITEM(value, 0);
    if (!is_array(ids) || !is_array(PyTuple_GET_ITEM(value, 1))) return false;
    const char kind = py::detail::array_descriptor_proxy(fields(ids).descr)->kind;
    return kind == 'i' || kind == 'u';
}

std::string cure_for(PyObject* value, bool is_gradient) {
    const std::string type = type_name(value);
    if (value == Py_None && !is_gradient)
        return "; leave it out: {k: p for k, p in params.items() if p is not None}";
    if (py::hasattr(value, "named_parameters"))
        return "; pass {k: p.detach().numpy() for k, p in module.named_parameters()}";
    if (py::hasattr(value, "detach")) return tensor_cure(value);
    if (is_masked(value)) return "; pass its .data";
    if (py::hasattr(value, "tocsr"))
        return is_gradient ? "; pass thalweg.RowGrad.from_scipy(g), or its .toarray()"
                           : "; pass its .toarray()";
    if (type.rfind("jax", 0) == 0)
        return is_gradient ? "; pass np.asarray(g), which shares the memory"
                           : "; pass np.array(p), a copy of your own: JAX's do not change";
    if (py::hasattr(value, "__dataclass_fields__"))
        return "; pass vars(...) of it, a dict that shares the arrays";
    if (is_instance(value, numpy_scalar.get()) && !is_gradient)
        return "; a number cannot change in place: pass np.array(value)";
    if (PyUnicode_Check(value))
        return "; pairs of names and arrays, as .items() gives them: pass dict(...) of them";
    if (is_pair_of_rows(value)) return "; pass thalweg.RowGrad(*g)";
    if (PyFloat_Check(value) || PyLong_Check(value))
        return is_gradient ? "; a number must be a float, and its param 0-d"
                           : "; a number cannot change in place: pass np.array(value)";
    if (PyList_Check(value) || PyTuple_Check(value)) return "; pass np.array(..., float) of it";
    if (py::hasattr(value, "to_numpy"))
        return is_gradient ? "; pass its .to_numpy()"
                           : "; pass np.array(p), a copy of your own, and read that one";
    if (py::hasattr(value, "numpy"))
        return is_gradient ? "; pass its .numpy()" : "; pass np.array(p), and read that one";
    if (py::hasattr(value, "__array__"))
        return is_gradient ? "; pass np.asarray(g)" : "; pass np.array(p), and read that one";
    return "";
}

// Whether two elements of one array may share memory: by strides where those settle it, else by
// looking at every address.
bool overlaps_itself(PyObject* array, bool& undecided) {
    const auto& a = fields(array);
    const py::ssize_t item = py::reinterpret_borrow<py::array>(array).itemsize();
    std::vector<std::pair<py::ssize_t, py::ssize_t>> axes; // |stride|, length
    py::ssize_t size = 1;
    for (int i = 0; i < a.nd; ++i) {
        if (a.dimensions[i] == 0) return false;
        if (a.dimensions[i] == 1) continue;
        axes.emplace_back(std::abs(a.strides[i]), a.dimensions[i]);
        size = size > overlap_limit ? size : size * a.dimensions[i];
    }
    std::sort(axes.begin(), axes.end());
    py::ssize_t reach = item;
    bool apart = true;
    for (const auto& [stride, length] : axes) {
        if (stride == 0) return true;
        apart = apart && stride >= reach;
        reach += (length - 1) * stride;
    }
    if (apart) return false;
    if (size > overlap_limit) {
        undecided = true;
        return true;
    }
    std::vector<py::ssize_t> starts = {0};
    for (const auto& [stride, length] : axes) {
        const std::size_t before = starts.size();
        for (py::ssize_t k = 1; k < length; ++k)
            for (std::size_t i = 0; i < before; ++i) starts.push_back(starts[i] + k * stride);
    }
    std::sort(starts.begin(), starts.end());
    return std::adjacent_find(starts.begin(), starts.end(),
                              [item](auto x, auto y) { return y - x < item; }) != starts.end();
}

[[noreturn]] void refuse_dtype(PyObject* array, const std::string& what, const char* expected,
                               const std::string& cure) {
    throw py::type_error(what + ": expected " + expected +
                         " in native byte order, received dtype " + dtype_text(array) + cure);
}

std::string dtype_cure(PyObject* array, bool is_gradient) {
    const std::string name = is_gradient ? "g" : "a";
    switch (py::detail::array_descriptor_proxy(fields(array).descr)->kind) {
    case 'O': return "; an object array holds arrays: pass list(" + name + ")";
    case 'V': return "; pass a dict of its fields: {k: a[k] for k in a.dtype.names}";
    case 'c': return "; the real and the imaginary part are two arrays: a.real, a.imag";
    case 'i':
    case 'u':
    case 'b':
        if (!is_gradient)
            return "; weights: convert it once, before training: a.astype(np.float32); a counter "
                   "or a mask is no param: leave it out";
        break;
    default: break;
    }
    return is_gradient ? "; convert it: g.astype(np.float32)"
                       : "; convert it once, before training: a.astype(np.float32)";
}

} // namespace

std::string label(const char* what, const std::string& path) {
    return path.empty() ? what : std::string(what) + "[\"" + path + "\"]";
}

std::string shape_text(PyObject* array) { return py::str(py::handle(array).attr("shape")); }

std::string received(PyObject* value) {
    if (value == Py_None) return "None";
    if (is_masked(value)) return "a masked array";
    if (is_array(value)) return "an array of shape " + shape_text(value);
    return type_name(value);
}

bool is_instance(PyObject* value, py::handle type) {
    return PyType_IsSubtype(Py_TYPE(value), reinterpret_cast<PyTypeObject*>(type.ptr())) != 0;
}

bool is_array(PyObject* value) {
    if (Py_TYPE(value) == first_made(ndarray, [] { return npy_api::get().PyArray_Type_; }))
        return true;
    return npy_api::get().PyArray_Check_(value) && !is_masked(value);
}

std::optional<Dtype> dtype_of(PyObject* descr) {
    // Not by identity: a descriptor may be a copy, for example with metadata.
    const auto* d = py::detail::array_descriptor_proxy(descr);
    if (d->byteorder != '=' && d->byteorder != '|') return std::nullopt;
    if (d->type_num == npy_api::NPY_FLOAT_) return Dtype::float32;
    if (d->type_num == npy_api::NPY_DOUBLE_) return Dtype::float64;
    if (d->type_num == npy_half) return Dtype::float16;
    return std::nullopt;
}

void check_changeable(PyObject* array, const Label& label, const char* read_only_cure,
                      const char* overlap_cure) {
    if ((fields(array).flags & writeable) == 0)
        throw py::value_error(label.text() +
                              ": expected a writeable array, received a read-only one" +
                              read_only_cure);
    bool undecided = false;
    if (overlaps_itself(array, undecided))
        throw py::value_error(
            label.text() +
            ": expected an array whose elements are apart in memory, received one of " +
            (undecided ? "strides too involved to tell" : "overlapping elements") + ", shape " +
            shape_text(array) + " and strides " +
            std::string(py::str(py::handle(array).attr("strides"))) + overlap_cure);
}

Dtype check_writable(PyObject* array, const Label& label) {
    if (!is_array(array))
        throw py::type_error(label.text() + ": expected a NumPy array, received " +
                             received(array) + cure_for(array, false));
    const auto dtype = dtype_of(fields(array).descr);
    if (!dtype || *dtype == Dtype::float16)
        refuse_dtype(array, label.text(), "float32 or float64", dtype_cure(array, false));
    check_changeable(array, label,
                     "; joblib, Ray and JAX hand out read-only views: pass np.array(a), a copy of "
                     "your own",
                     "; np.broadcast_to and as_strided make such views: pass np.array(a)");
    return *dtype;
}

Dtype check_gradient(PyObject* array, const Label& label) {
    if (!is_array(array))
        throw py::type_error(label.text() +
                             ": expected a NumPy array of float16, float32 or float64, or "
                             "None to skip it, received " +
                             received(array) + cure_for(array, true));
    const auto dtype = dtype_of(fields(array).descr);
    if (!dtype)
        refuse_dtype(array, label.text(), "float16, float32 or float64", dtype_cure(array, true));
    return *dtype;
}

void check_shape(PyObject* array, PyObject* param, const Label& label, const Label& param_label,
                 bool by_row) {
    const auto& a = fields(array);
    const auto& p = fields(param);
    const int nd = by_row ? std::min(p.nd, 1) : p.nd;
    if (a.nd == nd && std::equal(p.dimensions, p.dimensions + nd, a.dimensions)) return;
    const std::string expected =
        by_row && nd == 1 ? "(" + std::to_string(p.dimensions[0]) + ",), one element for each row"
                          : shape_text(param) + ", that";
    throw py::value_error(label.text() + ": expected shape " + expected + " of " +
                          param_label.text() + ", received shape " + shape_text(array));
}

py::array state_like(PyObject* param, double value, bool by_row) {
    const DefaultFloatMode mode; // for the rounding of `value`
    value = settled(value);
    const auto& p = fields(param);
    const auto dtype = *dtype_of(p.descr);
    const auto item = static_cast<py::ssize_t>(size_of(dtype));
    const int nd = by_row ? std::min(p.nd, 1) : p.nd;
    std::vector<int> order(static_cast<std::size_t>(nd));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int i, int j) { return std::abs(p.strides[i]) > std::abs(p.strides[j]); });
    std::vector<py::ssize_t> strides(order.size());
    py::ssize_t bytes = item;
    for (auto axis = order.rbegin(); axis != order.rend(); ++axis) {
        strides[static_cast<std::size_t>(*axis)] = bytes;
        bytes *= p.dimensions[*axis];
    }
    const auto count = static_cast<std::size_t>(bytes / item);
    const std::size_t after_line = reinterpret_cast<std::uintptr_t>(p.data) % cache_line;
    const std::size_t offset = // whole elements
        static_cast<std::size_t>(bytes) < many_lines ? 0 : after_line - after_line % size_of(dtype);
    const bool zeros = value == 0 && !std::signbit(value);
    const Memory memory = allocate_after(static_cast<std::size_t>(bytes), offset, zeros);
    char* const data = memory.data;
    if (zeros && static_cast<std::size_t>(bytes) >= large) {
        // They are.
    } else if (dtype == Dtype::float32) {
        std::fill_n(reinterpret_cast<float*>(data), count, static_cast<float>(value));
    } else {
        std::fill_n(reinterpret_cast<double*>(data), count, value);
    }
    return py::array(py::reinterpret_borrow<py::dtype>(p.descr),
                     std::vector<py::ssize_t>(p.dimensions, p.dimensions + nd), std::move(strides),
                     data, memory.owner);
}

const Zeros* zeros_of(PyObject* state) {
    PyObject* const base = fields(state).base;
    if (!base || !PyCapsule_IsValid(base, zeros_name)) return nullptr;
    return static_cast<const Zeros*>(PyCapsule_GetPointer(base, zeros_name));
}

} // namespace thalweg

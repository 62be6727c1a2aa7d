#include "optimizer.hpp"

#include <utility>

#include "../fork.hpp"
#include "../pool.hpp"
#include "gil.hpp"

namespace thalweg {

namespace {

// Bytes of params from which a step lasts far longer than letting the GIL go and taking it back.
constexpr std::size_t long_step = 65536;

constexpr Names step_names{"params", "grads", "state"};

const Kernel& kernel_called(const Level& level, const std::string& name) {
    const Kernel* kernel = find_kernel(level, name);
    if (!kernel) throw py::value_error("kernel: expected one of this build's, received " + name);
    return *kernel;
}

Update update_of(const Kernel& kernel, Dtype dtype) {
    return dtype == Dtype::float32 ? kernel.float32 : kernel.float64;
}

// Runs the plan and then `counts`, in one stretch that no fork cuts in two.
template <class Count> void run(Plan& plan, const Count& counts) {
    std::size_t bytes = 0;
    for (const Item& item : plan.items)
        if (item.active) bytes += item.size * size_of(item.dtype);
    if (bytes < long_step) {
        plan.run(bytes);
        counts();
        return;
    }
    bool threads_given = true;
    {
        const WithoutGil without_gil;
        const Running running;
        if (Plan::wants_threads(bytes)) threads_given = make_workers();
        plan.run(bytes);
        counts();
    }
    // Only now: a warning may run code of the caller's.
    if (!threads_given &&
        PyErr_WarnEx(PyExc_RuntimeWarning,
                     "thalweg: the system refused a thread; steps run on those there are, with the "
                     "same results; call set_num_threads() with fewer, or raise the limit",
                     1) != 0)
        throw py::error_already_set();
}

} // namespace

// Lets the gradients of this step go, however it ends.
class Optimizer::Found {
  public:
    explicit Found(Optimizer& opt) : opt_(opt) {
        if (opt_.collecting_) clear(); // left behind by a thread that a fork did not bring along
        opt_.collecting_ = true;
    }
    ~Found() {
        clear();
        opt_.collecting_ = false;
    }
    Found(const Found&) = delete;
    Found& operator=(const Found&) = delete;

  private:
    void clear() {
        for (PyObject*& grad : opt_.found_) Py_CLEAR(grad);
    }
    Optimizer& opt_;
};

Optimizer::Optimizer(const py::object& tree, const py::tuple& leaves, const py::tuple& groups,
                     const py::object& bound, const Level& level)
    : tree_(tree, leaves.size()) {
    for (const py::handle each : leaves) {
        const auto leaf = py::cast<py::tuple>(each);
        leaves_.emplace_back(leaf[0].cast<std::string>(), leaf[1], step_names);
        group_of_.push_back(leaf[2].cast<std::size_t>());
        if (group_of_.back() >= groups.size()) throw py::index_error("group");
    }
    for (const Leaf& leaf : leaves_) leaf.occupy(occupied_);
    occupied_.finish();

    for (const py::handle each : groups)
        groups_.emplace_back(py::cast<py::tuple>(each)[0].cast<std::string>());
    for (std::size_t i = 0; i < leaves_.size(); ++i) {
        const bool float32 = leaves_[i].dtype == Dtype::float32;
        groups_[group_of_[i]].float32 |= float32;
        float32_ |= float32;
    }
    for (std::size_t g = 0; g < groups_.size(); ++g) {
        const auto group = py::cast<py::tuple>(groups[g]);
        for (const py::handle entry : entries(group[1].cast<py::dict>())) {
            const auto pair = py::reinterpret_borrow<py::tuple>(entry);
            const auto name = pair[0].cast<std::string>();
            groups_[g].set(name, pair[1], option_label(g, name));
        }
    }

    occupied_ = Occupied();
    plan_.items.resize(leaves_.size());
    for (std::size_t i = 0; i < leaves_.size(); ++i) {
        const Group& group = groups_[group_of_[i]];
        if (kernel_called(level, group.kernel).has_state)
            leaves_[i].make_state(group.constant().initial_accumulator_value);
        leaves_[i].occupy(occupied_);
        leaves_[i].describe(plan_.items[i]);
        plan_.items[i].options = &group.current;
    }
    occupied_.finish();
    use_level(level);
    plan_.cut();

    found_.resize(leaves_.size());
    bound_.resize(leaves_.size());
    is_bound_ = !bound.is_none();
    if (is_bound_) {
        try {
            tree_.collect(bound.ptr(), false, bound_.data());
            check_and_bind(bound_);
        } catch (...) {
            for (PyObject*& grad : bound_) Py_CLEAR(grad);
            throw;
        }
    }
}

Optimizer::~Optimizer() { clear(); }

void Optimizer::clear() {
    is_bound_ = false;
    plan_.items.clear();
    // Emptied before they are let go, which may run code that looks at this object.
    const auto leaves = std::exchange(leaves_, {});
    for (PyObject* grad : std::exchange(bound_, {})) Py_XDECREF(grad);
    for (Group& group : groups_) group.clear();
}

int Optimizer::traverse(visitproc visit, void* arg) const {
    for (const Leaf& leaf : leaves_) {
        Py_VISIT(leaf.param.ptr());
        Py_VISIT(leaf.state.ptr());
    }
    for (PyObject* grad : bound_) Py_VISIT(grad);
    for (const Group& group : groups_)
        if (const int stop = group.traverse(visit, arg)) return stop;
    return tree_.traverse(visit, arg);
}

bool Optimizer::step(PyObject* grads, PyObject* scale, bool partial) {
    const Turn turn(gate_);
    if (leaves_.empty()) throw py::value_error("step: expected arrays, received none to update");
    if (!grads && !is_bound_)
        throw py::type_error("step: expected gradients, received none, and no buffers are bound; "
                             "call step(grads), or bind buffers once with grads=... when the "
                             "optimizer is made");
    const double factor =
        scale ? option_number(*find_option("scale"), scale, float32_, "scale") : 1.0;
    for (Group& group : groups_) group.refresh(step_count_, factor);
    if (grads) {
        const Found found(*this);
        tree_.collect(grads, partial, found_.data());
        check_and_bind(found_);
        run_plan();
    } else {
        check_and_bind(bound_);
        run_plan();
    }
    return true;
}

void Optimizer::check_and_bind(const std::vector<PyObject*>& grads) {
    for (std::size_t i = 0; i < leaves_.size(); ++i) {
        leaves_[i].check_unchanged();
        plan_.items[i].active = grads[i] != nullptr;
        if (grads[i]) leaves_[i].bind_gradient(grads[i], occupied_, plan_.items[i]);
    }
}

void Optimizer::run_plan() {
    run(plan_, [this] { ++step_count_; });
}

py::object Optimizer::state_of(std::size_t leaf) const {
    const py::object& state = leaves_.at(leaf).state;
    // A view: whoever gives it another shape must not give it to the buffer.
    return state ? state.attr("view")() : py::none();
}

py::object Optimizer::bound_of(std::size_t leaf) const {
    PyObject* grad = bound_.at(leaf);
    return py::reinterpret_borrow<py::object>(grad ? grad : Py_None);
}

std::string Optimizer::option_label(std::size_t group, const std::string& name) const {
    if (groups_.size() == 1) return name;
    return "param_groups[" + std::to_string(group) + "][\"" + name + "\"]";
}

py::object Optimizer::get_option(std::size_t group, const std::string& name) const {
    return groups_.at(group).get(name);
}

void Optimizer::set_option(std::size_t group, const std::string& name, const py::object& value) {
    groups_.at(group).set(name, value, option_label(group, name));
}

void Optimizer::set_counters(std::uint64_t step_count, const std::vector<std::uint64_t>& steps) {
    const Turn turn(gate_);
    if (steps.size() != plan_.items.size())
        throw py::value_error("steps: expected one for each array");
    step_count_ = step_count;
    for (std::size_t i = 0; i < steps.size(); ++i) plan_.items[i].t = steps[i];
}

void Optimizer::use_level(const Level& level) {
    const Turn turn(gate_);
    for (std::size_t i = 0; i < plan_.items.size(); ++i)
        plan_.items[i].update =
            update_of(kernel_called(level, groups_[group_of_[i]].kernel), leaves_[i].dtype);
}

void apply(const std::string& kernel_name, const py::tuple& params, const py::tuple& grads,
           const py::object& states, const char* state_name, const py::dict& options, bool numbered,
           const Level& level) {
    const Kernel& kernel = kernel_called(level, kernel_name);
    const Names names{"param", "grad", state_name};
    const auto path = [numbered](std::size_t i) { return numbered ? std::to_string(i) : ""; };
    if (grads.size() != params.size())
        throw py::value_error("grad: expected " + std::to_string(params.size()) +
                              " arrays, as many as in param, received " +
                              std::to_string(grads.size()));
    std::vector<Leaf> leaves;
    leaves.reserve(params.size());
    Plan plan;
    auto& items = plan.items;
    items.resize(params.size());
    Group group(kernel_name);
    Occupied occupied;
    for (std::size_t i = 0; i < params.size(); ++i) {
        Leaf& leaf = leaves.emplace_back(path(i), params[i], names);
        group.float32 |= leaf.dtype == Dtype::float32;
    }
    if (kernel.has_state) {
        const auto given = py::tuple(states);
        if (given.size() != params.size())
            throw py::value_error(
                std::string(state_name) + ": expected " + std::to_string(params.size()) +
                " arrays, as many as in param, received " + std::to_string(given.size()));
        for (std::size_t i = 0; i < leaves.size(); ++i) leaves[i].set_state(given[i]);
    }
    for (const Leaf& leaf : leaves) leaf.occupy(occupied);
    occupied.finish();
    double scale = 1;
    for (const py::handle entry : entries(options)) {
        const auto pair = py::reinterpret_borrow<py::tuple>(entry);
        const auto name = pair[0].cast<std::string>();
        if (PyCallable_Check(pair[1].ptr()))
            throw py::type_error(name + ": expected a number, received a callable; no steps are "
                                        "counted here: pass what it returns");
        if (name == "scale")
            scale = option_number(*find_option("scale"), pair[1], group.float32, name);
        else
            group.set(name, pair[1], name);
    }
    group.refresh(0, scale);
    for (std::size_t i = 0; i < leaves.size(); ++i) {
        leaves[i].check_unchanged(); // the options may have run code of the caller's
        leaves[i].describe(items[i]);
        items[i].update = update_of(kernel, leaves[i].dtype);
        items[i].options = &group.current;
        items[i].t = 1; // no counter: dampening always applies
        const py::object grad = grads[i];
        items[i].active = !grad.is_none();
        if (items[i].active) leaves[i].bind_gradient(grad.ptr(), occupied, items[i]);
    }
    plan.cut();
    run(plan, [] {});
}

} // namespace thalweg

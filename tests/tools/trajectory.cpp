// The trajectory of `python -m thalweg selftest` without Python, for systems and processors that
// have none here. trajectory.py writes `input` into this folder; what each level's params were
// after each step is left in LEVEL.params.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <fstream>
#include <ios>
#include <iostream>
#include <istream>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernel/contract.hpp"
#include "step/decision.hpp"
#include "step/level.hpp"
#include "step/options.hpp"
#include "step/plan.hpp"
#include "thread/pool.hpp"

namespace {

using namespace thalweg;

// As the bits of its float64, which no library reads in a way of its own.
double read_number(std::istream& from) {
    std::uint64_t bits = 0;
    from >> std::hex >> bits >> std::dec;
    return std::bit_cast<double>(bits);
}

std::string read_word(std::istream& from) {
    std::string word;
    from >> word;
    return word;
}

// One rule on its way down a quadratic bowl, as a plan of one array.
struct Way {
    virtual ~Way() = default;
    virtual void look() = 0; // the gradient where the param is now
    virtual void note() = 0;

    Options options;
    Plan plan;
    std::string seen; // the param's bytes after every step
};

template <class T> class WayOf final : public Way {
  public:
    WayOf(const Kernel& kernel, std::istream& from) {
        std::size_t numbers = 0, size = 0;
        for (from >> numbers; numbers != 0; --numbers) {
            const OptionSpec* const spec = find_option(read_word(from).c_str());
            if (!spec) throw std::runtime_error("input: an option that there is not");
            options.*(spec->field) = read_number(from);
        }
        from >> size;
        for (std::vector<T>* const array : {&param_, &centre_, &slope_})
            for (std::size_t i = 0; i < size; ++i)
                array->push_back(static_cast<T>(read_number(from)));
        grad_.resize(size);
        state_.assign(size, static_cast<T>(options.initial_accumulator_value));
        describe(kernel);
    }

    void look() override {
        for (std::size_t i = 0; i < param_.size(); ++i)
            grad_[i] = slope_[i] * (param_[i] - centre_[i]);
    }
    void note() override {
        seen.append(reinterpret_cast<const char*>(param_.data()), param_.size() * sizeof(T));
    }

  private:
    // What cpp/bind says of an array and its gradient.
    void describe(const Kernel& kernel) {
        constexpr bool single = sizeof(T) == 4;
        plan.items.resize(1);
        Item& item = plan.items[0];
        item.param = reinterpret_cast<char*>(param_.data());
        item.grad = reinterpret_cast<const char*>(grad_.data());
        if (kernel.has_state) item.state = reinterpret_cast<char*>(state_.data());
        item.size = param_.size();
        item.dtype = item.grad_dtype = single ? Dtype::float32 : Dtype::float64;
        item.active = true;
        item.by_row = kernel.by_row;
        item.linear = !kernel.by_row;
        item.kernel = &kernel;
        item.update = single ? kernel.float32 : kernel.float64;
        item.update_rows = single ? kernel.rows_float32 : kernel.rows_float64;
        item.options = &options;
        const auto shape = static_cast<std::ptrdiff_t>(item.size),
                   stride = std::ptrdiff_t{sizeof(T)};
        sequence_axes(1, &shape, &stride, sizeof(T), item.linear_axes);
        if (item.by_row) describe_rows(item, 1, &shape, {&stride, &stride, &stride});
        plan.cut();
    }

    std::vector<T> param_, centre_, slope_, grad_, state_;
};

void descend(const Level& level) {
    std::ifstream from("input");
    from.exceptions(std::ios::failbit | std::ios::badbit);
    std::size_t steps = 0, count = 0;
    from >> steps >> count;
    std::vector<std::unique_ptr<Way>> ways;
    std::vector<Part> parts;
    for (; count != 0; --count) {
        const Kernel* const kernel = find_kernel(level, read_word(from));
        if (!kernel) throw std::runtime_error("input: a kernel that there is not");
        if (read_word(from) == "float32")
            ways.push_back(std::make_unique<WayOf<float>>(*kernel, from));
        else
            ways.push_back(std::make_unique<WayOf<double>>(*kernel, from));
        parts.push_back({&ways.back()->plan});
    }
    // As if they were large enough for threads, or one would take all the steps.
    constexpr std::size_t large = std::size_t{1} << 23;
    double norm = 0;
    for (std::size_t t = 0; t < steps; ++t) {
        for (const auto& way : ways) way->look();
        if (t % 2 != 0)
            take_step(parts, large, {}, norm, [](std::size_t, double) {});
        else
            for (const auto& way : ways) way->plan.run_at_once();
        for (const auto& way : ways) way->note();
    }
    std::ofstream to(level.name + std::string(".params"), std::ios::binary);
    to.exceptions(std::ios::failbit | std::ios::badbit);
    for (const auto& way : ways) to << way->seen;
}

} // namespace

int main() {
    set_num_threads(2);
    if (!make_workers(2)) std::cerr << "the system refused a thread\n";
    for (const Level* const level : supported_levels()) descend(*level);
}

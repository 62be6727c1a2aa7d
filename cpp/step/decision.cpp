#include "decision.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "thread/floatmode.hpp"
#include "thread/pool.hpp"

namespace thalweg {

namespace {

// Bytes of params from which threads pay where they must be woken.
constexpr std::size_t waking_limit = std::size_t{1} << 23;

// Calls piece(plan, its piece) for every piece of the parts that `wanted` holds for, or
// whole(plan) where one thread does it all.
template <class Whole, class OnePiece>
void on_pieces(Parts parts, std::size_t bytes, bool Part::* wanted, const Whole& whole,
               const OnePiece& piece) {
    const int threads = threads_for(parts, bytes);
    if (threads == 1) {
        const DefaultFloatMode mode;
        for (const Part& part : parts)
            if (part.*wanted) whole(*part.plan);
        return;
    }
    struct Job {
        Parts parts;
        bool Part::* wanted;
        const OnePiece* piece;
        std::atomic<std::size_t> next = 0;
    } job{parts, wanted, &piece};
    run_on(
        threads,
        [](void* context) {
            auto& mine = *static_cast<Job*>(context);
            const DefaultFloatMode mode;
            while (true) {
                std::size_t k = mine.next.fetch_add(1, std::memory_order_relaxed), i = 0;
                for (; i < mine.parts.size() && k >= mine.parts[i].plan->pieces(); ++i)
                    k -= mine.parts[i].plan->pieces();
                if (i == mine.parts.size()) return;
                if (mine.parts[i].*mine.wanted) (*mine.piece)(*mine.parts[i].plan, k);
            }
        },
        &job, bytes >= waking_limit);
}

} // namespace

double Limits::* Limits::find(std::string_view name) {
    if (name == "max_norm") return &Limits::max_norm;
    if (name == "max_array_norm") return &Limits::max_array_norm;
    if (name == "norm_eps") return &Limits::norm_eps;
    if (name == "max_value") return &Limits::max_value;
    return nullptr;
}

int threads_for(Parts parts, std::size_t bytes) {
    if (Plan::is_for_one_thread(bytes)) return 1;
    std::size_t pieces = 0;
    for (const Part& part : parts) pieces += part.plan->pieces();
    const auto wanted = static_cast<std::size_t>(get_num_threads());
    return static_cast<int>(std::clamp<std::size_t>(pieces, 1, wanted));
}

void run(Parts parts, std::size_t bytes) {
    on_pieces(
        parts, bytes, &Part::taken, [](const Plan& plan) { plan.run(); },
        [](const Plan& plan, std::size_t piece) { plan.run_piece(piece); });
    for (const Part& part : parts)
        if (part.taken) part.plan->count();
}

void zero_left_out(Parts parts) {
    for (const Part& part : parts)
        if (!part.taken && part.plan->zeroing) part.plan->zero_gradients();
}

void measure(Parts parts, std::size_t bytes) {
    for (const Part& part : parts)
        if (part.measured) part.plan->begin_measuring();
    on_pieces(
        parts, bytes, &Part::measured, [](Plan& plan) { plan.measure(); },
        [](Plan& plan, std::size_t piece) { plan.measure_piece(piece); });
}

double norm(Parts parts) {
    const DefaultFloatMode mode;
    double squares = settled(0);
    for (const Part& part : parts)
        if (part.taken) part.plan->add_squares(squares);
    return settled(std::sqrt(squares));
}

} // namespace thalweg

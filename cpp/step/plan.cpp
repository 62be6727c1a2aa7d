#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "thread/floatmode.hpp"
#include "walk.hpp"
#include "zeroing.hpp"

namespace thalweg {

namespace {

Sequence gradient_of(const Item& item) {
    const auto& axes = item.linear ? item.linear_axes : item.axes;
    return {const_cast<char*>(item.grad), axes.data(), axes.size(), item.grad_dtype};
}

// Whether some square, of an element or the mean of a row, may not be finite in the item's dtype,
// given the sum of the squares before clipping by the norm. Half of the dtype's range is left to
// what rounding adds.
bool may_overflow(const Item& item, double squares, const Options& options) {
    const double largest = item.dtype == Dtype::float32 ? double{std::numeric_limits<float>::max()}
                                                        : std::numeric_limits<double>::max();
    const double clip = std::min(options.clip, 1.0);
    return !(squares * clip * clip <= largest / 2);
}

// Elements that are updated and then averaged or zeroed while they are in L1 and L2: 2,048 to
// 16,384 take the same time within a tenth, whole arrays beyond the caches 1.1 to 1.4 times that. A
// sparse gradient's are more: its kernel asks for the memory of the rows ahead.
constexpr std::size_t together = 4096;

void take_in(const Item& item, const Box& box, std::size_t index, const Options& averaged) {
    const Average& to = *item.average;
    const auto size = static_cast<std::ptrdiff_t>(size_of(item.dtype));
    const Operand average = item.linear ? Operand{to.data + (box.param.data - item.param), 0, size}
                                        : item.traversal.average(index, to.data);
    to.update({box.rows, box.cols, average, box.param, {nullptr, 0, 0}, item.dtype}, averaged,
              to.started);
}

void take_in(const Item& item, const RowBox& box, const Options& averaged) {
    const Average& to = *item.average;
    RowBox average{};
    average.param = to.rows;
    average.grad = box.param;
    average.row_size = box.row_size;
    average.first = box.first, average.last = box.last;
    to.update_rows(average, averaged, to.started);
}

// Runs share `share` of `shares` of an item.
void run_item(const Item& item, std::size_t share, std::size_t shares, const Options& options) {
    walk(
        item, share, shares, all_at_once,
        [&](const Box& box, std::size_t) { item.update(box, options, item.t); },
        [&](const RowBox& box) { item.update_rows(box, options, item.t); });
}

// The same, and what follows an update. `averaged` is null where there are no averages.
void run_and_more(const Item& item, std::size_t share, std::size_t shares, const Options& options,
                  const Options* averaged, bool zeroing) {
    walk(
        item, share, shares, item.sparse ? norm_block : together,
        [&](const Box& box, std::size_t index) {
            item.update(box, options, item.t);
            if (averaged) take_in(item, box, index, *averaged);
            if (zeroing) zero_gradient(box);
        },
        [&](const RowBox& box) {
            item.update_rows(box, options, item.t);
            if (averaged) take_in(item, box, *averaged);
            if (zeroing) zero_gradient(box);
        });
}

} // namespace

void describe_rows(Item& item, std::size_t ndim, const std::ptrdiff_t* shape,
                   const Traversal::Strides& strides) {
    if (!item.rows) item.rows = std::make_unique<ByRows>();
    ByRows& rows = *item.rows;
    rows.box.sums = nullptr;
    const std::size_t outer = ndim == 0 ? 0 : 1;
    const auto operand = [&](char* data, const std::ptrdiff_t* its_strides, Dtype dtype,
                             std::size_t inner, std::vector<Sequence::Axis>& kept) {
        sequence_axes(inner, shape + outer, its_strides + outer, size_of(dtype), kept);
        return RowOperand{{data, kept.data(), kept.size(), dtype}, ndim == 0 ? 0 : its_strides[0]};
    };
    rows.table = ndim == 0 ? 1 : static_cast<std::size_t>(shape[0]);
    rows.box.row_size = 1;
    for (std::size_t i = 1; i < ndim; ++i) rows.box.row_size *= static_cast<std::size_t>(shape[i]);
    rows.box.param = operand(item.param, strides.param, item.dtype, ndim - outer, rows.param);
    rows.box.grad = operand(const_cast<char*>(item.grad), strides.grad, item.grad_dtype,
                            ndim - outer, rows.grad);
    if (item.state)
        rows.box.state = operand(item.state, strides.state, item.dtype,
                                 item.by_row ? 0 : ndim - outer, rows.state);
    if (Average* const average = item.average.get())
        average->rows =
            operand(average->data, strides.average, item.dtype, ndim - outer, average->axes);
}

void ByRows::keep_sums(std::size_t element_size) {
    box.sums = nullptr;
    if (rows.distinct() == numbers.count) return;
    const std::size_t bytes = rows.distinct() * box.row_size * element_size;
    if (bytes > bytes_) {
        sums_.reset();
        bytes_ = 0;
        sums_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
        bytes_ = bytes;
    }
    box.sums = reinterpret_cast<char*>(sums_.get());
}

void Plan::cut() {
    // Aside, so that a failure for want of memory leaves the old ones.
    std::vector<Piece> pieces;
    std::vector<std::size_t> first_block{0};
    std::size_t first = 0, weight = 0;
    const auto close = [&](std::size_t last) {
        if (first != last) pieces.push_back({first, last, 0, 1});
        first = last, weight = 0;
    };
    for (std::size_t i = 0; i < items.size(); ++i) {
        if (items[i].changes() > norm_block) {
            close(i);
            const std::size_t shares = ceil_div(items[i].changes(), norm_block);
            for (std::size_t share = 0; share < shares; ++share)
                pieces.push_back({i, i + 1, share, shares});
            first = i + 1;
            continue;
        }
        weight += items[i].changes() + line;
        if (weight >= norm_block) close(i + 1);
    }
    close(items.size());
    for (const Item& item : items)
        first_block.push_back(first_block.back() + ceil_div(item.changes(), norm_block));
    measured_.resize(first_block.back());
    overflown_.resize(items.size());
    pieces_ = std::move(pieces);
    first_block_ = std::move(first_block);
}

void Plan::choose(const std::vector<std::size_t>& these) {
    if (some_)
        for (const std::size_t i : chosen_) items[i].active = false;
    else
        for (Item& item : items) item.active = false;
    chosen_ = these;
    some_ = true;
    has_sparse = false;
}

std::optional<Plan::Refused> Plan::sort_rows() {
    if (!has_rows_to_sort()) return std::nullopt;
    std::optional<Refused> refused;
    each_active([&](std::size_t i) {
        if (refused || !items[i].sparse) return;
        ByRows& rows = *items[i].rows;
        if (const auto bad = rows.rows.sort(rows.numbers, rows.table)) refused = {i, *bad};
    });
    if (refused) return refused;
    cut();
    cut_for_rows_ = has_sparse;
    return std::nullopt;
}

void Plan::run_share(std::size_t i, std::size_t share, std::size_t shares) const {
    if (!items[i].active || items[i].size == 0) return;
    if (!zeroing && !averaging) return run_item(items[i], share, shares, options_of(i));
    run_and_more(items[i], share, shares, options_of(i), averaging ? &averaged : nullptr, zeroing);
}

void Plan::run_at_once() {
    clip_alike();
    const DefaultFloatMode mode;
    each_active([this](std::size_t i) {
        run_share(i, 0, 1);
        count(i);
    });
}

void Plan::run() const {
    each_active([this](std::size_t i) { run_share(i, 0, 1); });
}

void Plan::run_piece(std::size_t piece) const {
    const Piece& p = pieces_[piece];
    for (std::size_t i = p.first; i < p.last; ++i) run_share(i, p.share, p.shares);
}

void Plan::zero_gradients() const {
    each_active([this](std::size_t i) {
        if (items[i].size == 0) return;
        walk(
            items[i], 0, 1, all_at_once, [](const Box& box, std::size_t) { zero_gradient(box); },
            [](const RowBox& box) { zero_gradient(box); });
    });
}

void Plan::measure_share(std::size_t i, std::size_t share, std::size_t shares) {
    const Item& item = items[i];
    if (!item.active || item.size == 0) return;
    const Sequence grad = gradient_of(item);
    RowBox box{};
    if (item.sparse) {
        box = item.rows->box;
        item.rows->rows.describe(box);
        box.first = 0;
        box.last = item.rows->rows.distinct(); // up to which memory is asked for ahead
    }
    // An item has as many shares as blocks, or one share.
    const std::size_t blocks = first_block_[i + 1] - first_block_[i];
    for (std::size_t b = blocks / shares * share; b < blocks / shares * (share + 1); ++b) {
        const std::size_t begin = b * norm_block;
        const std::size_t end = std::min(item.changes(), begin + norm_block);
        measured_[first_block_[i] + b] = item.sparse
                                             ? item.measure_rows(box, begin, end, *item.options)
                                             : item.measure(grad, begin, end, *item.options);
    }
}

void Plan::begin_measuring() {
    each_active([this](std::size_t i) {
        overflown_[i] = {};
        if (items[i].sparse) items[i].rows->keep_sums(size_of(items[i].dtype));
    });
}

void Plan::measure() {
    each_active([this](std::size_t i) { measure_share(i, 0, 1); });
}

void Plan::measure_piece(std::size_t piece) {
    const Piece& p = pieces_[piece];
    for (std::size_t i = p.first; i < p.last; ++i) measure_share(i, p.share, p.shares);
}

void Plan::add_squares(double& sum) const {
    each_active([&](std::size_t i) { sum += measured(i).squares; });
}

double Plan::clip(double max_norm, double norm, double norm_eps) {
    if (max_norm == std::numeric_limits<double>::infinity()) return 1; // a NaN does not clip
    const DefaultFloatMode mode;
    return settled(max_norm / (settled(norm) + norm_eps));
}

bool Plan::clip_each(double max_norm, double norm_eps) {
    const DefaultFloatMode mode;
    bool finite = true;
    clipped_.resize(items.size());
    each_active([&](std::size_t i) {
        const double norm = settled(std::sqrt(settled(measured(i).squares)));
        finite = finite && std::isfinite(norm);
        clipped_[i] = *items[i].options;
        clipped_[i].clip = clip(max_norm, norm, norm_eps);
    });
    return finite;
}

bool Plan::any_bad() const {
    bool any = false;
    each_active([&](std::size_t i) {
        const Measured found = measured(i);
        any = any || found.nans + found.infinities != 0;
    });
    return any;
}

bool Plan::any_overflow() {
    const DefaultFloatMode mode;
    bool any = false;
    each_active([&](std::size_t i) {
        const Item& item = items[i];
        if (item.size == 0 || !item.kernel->overflow_float32 ||
            !may_overflow(item, measured(i).squares, options_of(i)))
            return;
        const bool single = item.dtype == Dtype::float32;
        if (item.by_row || item.sparse) {
            RowBox box = item.rows->box;
            if (item.sparse) item.rows->rows.describe(box);
            box.first = 0;
            box.last = item.sparse ? item.rows->rows.distinct() : item.rows->table;
            const auto find =
                single ? item.kernel->overflow_rows_float32 : item.kernel->overflow_rows_float64;
            overflown_[i] = find(box, options_of(i));
        } else {
            const auto find =
                single ? item.kernel->overflow_float32 : item.kernel->overflow_float64;
            overflown_[i] = find(gradient_of(item), 0, item.size, options_of(i));
        }
        any = any || overflown_[i].count != 0;
    });
    return any;
}

Measured Plan::measured(std::size_t item) const {
    Measured whole{};
    for (std::size_t b = first_block_[item]; b < first_block_[item + 1]; ++b) {
        const Measured& part = measured_[b];
        whole.squares += part.squares;
        if (whole.nans + whole.infinities == 0) whole.first = part.first;
        whole.nans += part.nans;
        whole.infinities += part.infinities;
    }
    return whole;
}

std::size_t Plan::element(std::size_t item, std::size_t index) const {
    if (!items[item].sparse) return index;
    RowBox box = items[item].rows->box;
    items[item].rows->rows.describe(box);
    return box.row(index / box.row_size) * box.row_size + index % box.row_size;
}

} // namespace thalweg

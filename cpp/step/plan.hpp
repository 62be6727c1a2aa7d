// A step over many arrays, without Python: what to update, and how it is cut into boxes.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "count.hpp"
#include "kernel/contract.hpp"
#include "rows.hpp"
#include "traversal.hpp"

namespace thalweg {

// What an array's step by rows needs: those of a sparse gradient, or all.
struct ByRows {
    // Where the operands lie, and the axes of a row of each.
    RowBox box{};
    std::vector<Sequence::Axis> param, grad, state;
    std::size_t table = 0; // rows
    RowNumbers numbers{};
    Rows rows;

    // Where measuring is to leave the summed rows, if some are summed. Throws std::bad_alloc.
    void keep_sums(std::size_t element_size);

  private:
    std::unique_ptr<std::byte[]> sums_; // kept between steps
    std::size_t bytes_ = 0;
};

// The average of one array's weights, which a step takes the new ones into.
struct Average {
    char* data = nullptr;
    Count started = 0; // 1: it has taken a step
    Update update = nullptr;
    UpdateRows update_rows = nullptr;
    // Where the array's step goes by rows.
    RowOperand rows{};
    std::vector<Sequence::Axis> axes;
};

// One array of a step. Everything but `grad`, `active` and `t` stays from step to step, unless the
// gradient comes in another layout. What every step of a small model reads is in the first line.
struct alignas(64) Item {
    char* param = nullptr;
    char* state = nullptr;
    const char* grad = nullptr;
    std::size_t size = 0;
    Dtype dtype = Dtype::float32;
    Dtype grad_dtype = Dtype::float32;
    bool active = false; // false: this step leaves the array alone
    bool linear = false; // all operands are one run of adjacent elements: no traversal needed
    bool by_row = false; // the state has one element a row
    bool sparse = false; // the gradient names its rows
    Update update = nullptr;
    const Options* options = nullptr;
    Count t = 0; // steps taken
    Traversal traversal;

    // The gradient in logical C order: of one laid out like the param, and of the one at hand.
    std::vector<Sequence::Axis> linear_axes, axes;
    Measure measure = nullptr;
    const Kernel* kernel = nullptr;

    std::unique_ptr<ByRows> rows; // where by_row or sparse
    UpdateRows update_rows = nullptr;
    MeasureRows measure_rows = nullptr;

    std::unique_ptr<Average> average; // null: its weights are not averaged

    // Elements that a step changes, once its rows are sorted; what they were is not remembered
    // beyond it, for the next step may have a dense gradient again.
    std::size_t changes() const {
        return sparse && active ? rows->rows.distinct() * rows->box.row_size : size;
    }
    // What a step takes its time for.
    std::size_t reads() const { return sparse ? rows->numbers.count * rows->box.row_size : size; }
};

// Puts what a step by rows walks into item.rows. Strides in bytes; those of a state of one element
// a row have one axis.
void describe_rows(Item& item, std::size_t ndim, const std::ptrdiff_t* shape,
                   const Traversal::Strides& strides);

// Bytes of params from which threads pay.
constexpr std::size_t thread_limit = std::size_t{1} << 19;

// The items of a step, cut once into pieces of about equal work, which threads claim one by one.
class Plan {
  public:
    // Once the items' sizes are known.
    void cut();

    // Where an item is sparse, before anything else of a step: sorts its rows. Returns the first
    // item with a number that is none of its rows, or nothing.
    struct Refused {
        std::size_t item;
        BadRow row;
    };
    std::optional<Refused> sort_rows();
    bool has_rows_to_sort() const { return has_sparse || cut_for_rows_; }

    // Which items may be active in this step: all, for each of which `active` is set then, or only
    // these, in ascending order; a step of few among many takes the time of the few.
    void choose_all() {
        some_ = false;
        has_sparse = false;
    }
    void choose(const std::vector<std::size_t>& these);
    // Calls work(i) for the active ones.
    template <class Work> void each_active(const Work& work) const {
        if (some_) {
            for (const std::size_t i : chosen_)
                if (items[i].active) work(i);
        } else {
            for (std::size_t i = 0; i < items.size(); ++i)
                if (items[i].active) work(i);
        }
    }

    // A step that changes `bytes` of params, if it is not measured, needs no cut: threads take part
    // from a size on where they pay.
    static bool is_for_one_thread(std::size_t bytes) { return bytes < thread_limit; }

    // Of the params that the step concerns.
    std::size_t bytes() const {
        std::size_t sum = 0;
        each_active([&](std::size_t i) { sum += items[i].reads() * size_of(items[i].dtype); });
        return sum;
    }

    // All of a step that is not measured, on this thread, and its count.
    void run_at_once();
    // Of the step, and of reading its gradients: all that is active, or one of the pieces, which
    // threads may do at once.
    void run() const;
    void run_piece(std::size_t piece) const;
    void count() { // the step is taken
        each_active([this](std::size_t i) { count(i); });
    }
    // Of a step that is left out: zeroes what it would have used.
    void zero_gradients() const;
    void begin_measuring();
    void measure();
    void measure_piece(std::size_t piece);
    std::size_t pieces() const { return pieces_.size(); }

    // Once measured. Adds the squares in the order of the items and their blocks.
    void add_squares(double& sum) const;
    // What brings a norm down to max_norm.
    static double clip(double max_norm, double norm, double norm_eps);
    // Every item of the step is clipped by its own norm; false: one of those is not finite.
    bool clip_each(double max_norm, double norm_eps);
    void clip_alike() { clipped_.clear(); }
    bool any_bad() const;
    // With the clip factor in the options: squares that a rule cannot keep.
    bool any_overflow();
    const Overflown& overflown(std::size_t item) const { return overflown_[item]; }
    // Of a whole item.
    Measured measured(std::size_t item) const;
    // The index in the param of what is element `index` of those that the step changes.
    std::size_t element(std::size_t item, std::size_t index) const;

    std::vector<Item> items;
    bool has_sparse = false; // among the active items
    bool zeroing = false;    // gradients are zeroed behind their update
    bool averaging = false;  // every item has an average
    Options averaged{};      // what those are told

  private:
    // Items `first` to `last` whole, or one share of a single one.
    struct Piece {
        std::size_t first, last, share, shares;
    };
    const Options& options_of(std::size_t item) const {
        return clipped_.empty() ? *items[item].options : clipped_[item];
    }
    void count(std::size_t item) {
        items[item].t += 1;
        if (averaging) items[item].average->started = true;
    }
    void run_share(std::size_t item, std::size_t share, std::size_t shares) const;
    void measure_share(std::size_t item, std::size_t share, std::size_t shares);

    std::vector<std::size_t> chosen_;
    bool some_ = false; // else all are
    std::vector<Piece> pieces_;
    bool cut_for_rows_ = false;
    std::vector<Measured> measured_;       // of each block
    std::vector<Overflown> overflown_;     // of each item
    std::vector<Options> clipped_;         // of each item, where each has a clip factor of its own
    std::vector<std::size_t> first_block_; // of each item, and the end
};

} // namespace thalweg

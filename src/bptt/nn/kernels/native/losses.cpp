// The cross entropy of linear scores, and its gradients, in blocks of rows and classes.
#include <algorithm>

#include "layer.h"

namespace bptt {

constexpr int64_t WIDE = 1024, ELEMENTS = 1 << 19;  // the most classes in a block, and numbers
constexpr int64_t FEW_NUMBERS = 20000, FEW_TERMS = 1000000;  // below which one thread is faster

static int64_t classes_of(const Readout &r) { return std::min(r.classes, WIDE); }
static int64_t stride_of(const Readout &r) { return (classes_of(r) + 15) / 16 * 16; }
static int64_t rows_of(const Readout &r) { return std::min(r.rows, std::max<int64_t>(ELEMENTS / stride_of(r), 48)); }

static int threads_of(const Readout &r) {
    return r.rows * r.classes * r.inputs > FEW_TERMS ? int(std::min(r.threads, r.rows)) : 1;
}

int64_t readout_room(const Kernels &kernels, const Readout &r) {
    if (r.kept) return kernels.kept_room(r, threads_of(r));
    const int64_t packed = std::max(kernels.product_packed(classes_of(r), 0), kernels.product_packed(r.inputs, 0));
    return (packed + 15) / 16 * 16 + rows_of(r) * stride_of(r) + 3 * r.rows;
}

namespace {

struct Blocks {
    const Kernels &kernels;
    const Readout &r;
    float *packed, *at, *sums, *largest, *picked;

    void multiply(Product p) const {
        p.threads = p.m * p.n * p.k > FEW_TERMS ? int(r.threads) : 1, p.packed = packed;
        kernels.product(p);
    }

    // The scores of the rows from `row` on, for the classes from `first` on.
    Scores scores(int64_t row, int64_t first) const {
        Scores s{};
        s.rows = std::min(rows_of(r), r.rows - row), s.count = std::min(WIDE, r.classes - first), s.row = row, s.first = first;
        s.classes = r.classes, s.stride = stride_of(r), s.ignored = r.ignored, s.targets = r.targets, s.at = at;
        s.sums = sums, s.largest = largest, s.picked = picked, s.norms = r.norms, s.losses = r.losses, s.d_losses = r.d_losses;
        s.threads = s.rows * s.count > FEW_NUMBERS ? int(r.threads) : 1;
        Product p;
        p.m = s.rows, p.n = s.count, p.k = r.inputs, p.a = r.x + row * r.inputs, p.lda = r.inputs;
        p.b = r.w + first * r.inputs, p.ldb = r.inputs, p.b_transposed = true, p.bias = r.b ? r.b + first : nullptr;
        p.c = at, p.ldc = s.stride;
        multiply(p);
        return s;
    }

    void gradients(const Scores &s) const {
        const float *x = r.x + s.row * r.inputs, *w = r.w + s.first * r.inputs;
        if (r.d_x) {
            Product p;
            p.m = s.rows, p.n = r.inputs, p.k = s.count, p.a = at, p.lda = s.stride, p.b = w, p.ldb = r.inputs;
            p.c = r.d_x + s.row * r.inputs, p.ldc = r.inputs, p.add = s.first > 0;
            multiply(p);
        }
        if (!r.d_w && !r.d_b) return;
        Product p;
        p.m = s.count, p.k = s.rows, p.a = at, p.lda = s.stride, p.a_transposed = true, p.add = s.row > 0;
        if (r.d_w) p.n = r.inputs, p.b = x, p.ldb = r.inputs, p.c = r.d_w + s.first * r.inputs, p.ldc = r.inputs;
        if (r.d_b) p.sums = r.d_b + s.first;
        multiply(p);
    }
};

}  // namespace

void readout(const Kernels &kernels, const Readout &r, float *room) {
    if (r.kept) return kernels.kept(r, threads_of(r), room);
    const int64_t packed = std::max(kernels.product_packed(classes_of(r), 0), kernels.product_packed(r.inputs, 0));
    float *at = room + (packed + 15) / 16 * 16, *rest = at + rows_of(r) * stride_of(r);
    const Blocks blocks{kernels, r, room, at, rest, rest + r.rows, rest + 2 * r.rows};
    const bool whole = r.classes <= WIDE, wanted = r.d_x || r.d_w || r.d_b;
    if (r.losses && !whole)
        for (int64_t row = 0; row < r.rows; row += rows_of(r))
            for (int64_t first = 0; first < r.classes; first += WIDE) {
                Scores s = blocks.scores(row, first);
                s.add = true;
                kernels.scores(s);
            }
    if (!whole && !wanted) return;
    for (int64_t first = 0; first < r.classes; first += WIDE)
        for (int64_t row = 0; row < r.rows; row += rows_of(r)) {
            Scores s = blocks.scores(row, first);
            s.add = whole && r.losses, s.differentiate = wanted;
            kernels.scores(s);
            if (wanted) blocks.gradients(s);
        }
}

}  // namespace bptt

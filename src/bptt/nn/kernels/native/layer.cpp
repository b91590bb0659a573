// A layer forward and backward: the products of all steps at once before and after the steps.
#include "layer.h"

#include <algorithm>
#include <cstring>

namespace bptt {

// Work below which threads would take longer to wake than to do it: multiplications of the steps, and of a product.
constexpr int64_t FEW_STEPS = 2000000, FEW_PRODUCTS = 1000000;

static int threads_for(const Sequence &q, int64_t work, int64_t few) { return work > few ? int(q.threads) : 1; }

static Recurrence recurrence(const Sequence &q, const Room &room) {
    const int64_t work = q.total * q.units * q.units * gates_of(q.cell);
    const float *bias_n = q.cell == GRU && q.b_hh ? q.b_hh + 2 * q.units : nullptr;
    return {{q}, room.table, threads_for(q, work, FEW_STEPS), bias_n, room.packed, room.carry};
}

static void multiply(const Kernels &kernels, const Sequence &q, const Room &room, Product p) {
    p.threads = threads_for(q, p.m * (p.n + p.n2) * p.k, FEW_PRODUCTS);
    p.packed = room.packed;
    kernels.product(p);
}

void forward(const Kernels &kernels, const Sequence &q, const Room &room) {
    const int64_t H = q.units, I = q.inputs, GH = gates_of(q.cell) * H, both = q.cell == GRU ? 2 * H : GH;
    Product p;  // gates = x W_ih^T + bias
    p.m = q.distinct, p.n = GH, p.k = I, p.a = q.x, p.lda = I, p.b = q.w_ih, p.ldb = I, p.b_transposed = true;
    p.c = q.ids ? room.table : q.gates, p.ldc = saved_of(q.cell) * H;
    if (q.b_ih && q.b_hh) {
        for (int64_t i = 0; i < GH; ++i) room.bias[i] = i < both ? q.b_ih[i] + q.b_hh[i] : q.b_ih[i];
        p.bias = room.bias;
    }
    multiply(kernels, q, room, p);
    kernels.forward(recurrence(q, room));
}

// d_x = d_gates W_ih, of `count` gates that begin at `gate` in the weights and at `at` in d_gates.
static void to_input(const Kernels &kernels, const Sequence &q, const Room &room, int64_t gate, int64_t at, int64_t count) {
    const int64_t H = q.units, I = q.inputs;
    Product p;
    p.m = q.total, p.n = I, p.k = count * H, p.a = q.d_gates + at * H, p.lda = saved_of(q.cell) * H;
    p.b = q.w_ih + gate * H * I, p.ldb = I, p.c = q.d_x, p.ldc = I, p.add = gate > 0;
    multiply(kernels, q, room, p);
}

// dW_ih = d_gates^T x and dW_hh = d_gates^T h_before from one reading of d_gates, and its sums, the bias' gradients.
static void to_weights(
    const Kernels &kernels, const Sequence &q, const Room &room, int64_t gate, int64_t at, int64_t count, bool input, bool state) {
    const int64_t H = q.units, I = q.inputs, S = saved_of(q.cell);
    float *b_ih = input && q.d_b_ih ? q.d_b_ih + gate * H : nullptr, *b_hh = state && q.d_b_hh ? q.d_b_hh + gate * H : nullptr;
    Product p;
    p.m = count * H, p.k = q.total, p.a = q.d_gates + at * H, p.lda = S * H, p.a_transposed = true;
    p.sums = b_ih ? b_ih : b_hh;
    if (input && q.d_w_ih) p.n = I, p.b = q.x, p.ldb = I, p.c = q.d_w_ih + gate * H * I, p.ldc = I;
    if (state && q.d_w_hh) p.n2 = H, p.b2 = room.before, p.c2 = q.d_w_hh + gate * H * H, p.ldc2 = H;
    if (p.n || p.n2 || p.sums) multiply(kernels, q, room, p);
    if (b_ih && b_hh) std::memcpy(b_hh, b_ih, count * H * sizeof(float));
}

static void to_inputs_and_weights(const Kernels &kernels, const Sequence &q, const Room &room, bool input, bool state) {
    const int64_t all = gates_of(q.cell);
    if (q.cell != GRU) {
        if (input && q.d_x) to_input(kernels, q, room, 0, 0, all);
        return to_weights(kernels, q, room, 0, 0, all, input, state);
    }
    if (input && q.d_x) to_input(kernels, q, room, 0, 0, 2), to_input(kernels, q, room, 2, 3, 1);
    to_weights(kernels, q, room, 0, 0, 2, input, state);
    to_weights(kernels, q, room, 2, 3, 1, input, false), to_weights(kernels, q, room, 2, 2, 1, false, state);
}

// The rows of d_gates that have one id, summed: a sequence of as many rows as x has.
static Sequence by_id(const Kernels &kernels, const Sequence &q, const Room &room) {
    int64_t *order = room.order, *begin = order + q.total;
    std::fill(begin, begin + q.distinct + 1, 0);
    for (int64_t i = 0; i < q.total; ++i) ++begin[q.ids[i] + 1];
    for (int64_t id = 0; id < q.distinct; ++id) begin[id + 1] += begin[id];
    for (int64_t i = 0; i < q.total; ++i) order[begin[q.ids[i]]++] = i;  // begin[id] is the end of id's rows now
    for (int64_t id = q.distinct; id > 0; --id) begin[id] = begin[id - 1];
    begin[0] = 0;
    const int64_t width = saved_of(q.cell) * q.units;
    kernels.sums({threads_for(q, q.total * width, FEW_PRODUCTS), q.distinct, width, order, begin, q.d_gates, room.table});
    Sequence sums = q;
    sums.total = q.distinct, sums.d_gates = room.table;
    return sums;
}

void backward(const Kernels &kernels, const Sequence &q, const Room &room) {
    kernels.backward(recurrence(q, room));
    const Steps steps{q};
    if (q.d_w_hh)
        for (int64_t s = 0; s < q.steps; ++s)
            for (int64_t b = 0; b < steps.rows(s); ++b) room.before[steps.flat(s) + b] = steps.before(s, b, q.outputs, q.h0);
    if (q.ids && (q.d_x || q.d_w_ih || q.d_b_ih))
        to_inputs_and_weights(kernels, by_id(kernels, q, room), room, true, false);
    to_inputs_and_weights(kernels, q, room, !q.ids, true);
}

}  // namespace bptt

// A layer forward and backward: the products of all steps at once before and after the steps.
#include "layer.h"

#include <algorithm>
#include <cstring>

namespace bptt {

// Below this many multiplications, of the steps and of a product, threads would take longer to wake than to compute.
constexpr int64_t FEW_STEPS = 2000000, FEW_PRODUCTS = 1000000, FEW_UNPACKED = 200000;

static int threads_for(const Sequence &q, int64_t work, int64_t few) { return work > few ? int(q.threads) : 1; }

static Recurrence recurrence(const Kernels &kernels, const Sequence &q, const Room &room, bool few) {
    const int64_t work = q.total * (q.units + (few ? q.inputs : 0)) * q.units * kernels.shape(q.cell).gates;
    for (int64_t t = 0; room.keys && t < q.steps; ++t) room.keys[t] = StepKey(q.key, q.clock + t);
    return {{q}, q.ids && !few ? room.table : nullptr, threads_for(q, work, few ? FEW_UNPACKED : FEW_STEPS), room.packed, room.carry, room.keys, few};
}

static void multiply(const Kernels &kernels, const Sequence &q, const Room &room, Product p) {
    p.threads = threads_for(q, p.m * (p.n + p.n2) * p.k, FEW_PRODUCTS);
    p.packed = room.packed;
    kernels.product(p);
}

// Whether to pack the weights would take longer than it saves.
static bool few_forward(const Sequence &q) { return q.steps <= FEW && q.rows <= FEW && !q.sizes; }
static bool few_backward(const Sequence &q) {
    return q.rows <= FEW && q.steps - 1 + (q.d_h0 || q.d_c0 || q.d_start_h || q.d_start_c) <= 2;
}

void forward(const Kernels &kernels, const Sequence &q, const Room &room) {
    if (few_forward(q)) {
        std::fill_n(room.packed, q.units, 0.f);  // a state of zeros
        return kernels.forward(recurrence(kernels, q, room, true));
    }
    const Shape &shape = kernels.shape(q.cell);
    const int64_t H = q.units, I = q.inputs, GH = shape.gates * H;
    Product p;  // gates = x W_ih^T + bias
    p.m = q.distinct, p.n = GH, p.k = I, p.a = q.x, p.lda = I, p.b = q.w_ih, p.ldb = I, p.b_transposed = true;
    p.c = q.ids ? room.table : q.gates, p.ldc = shape.saved * H;
    p.bias = q.b_ih;
    if (q.b_ih && q.b_hh) {
        for (int64_t i = 0; i < GH; ++i) room.bias[i] = q.b_ih[i] + (shape.apart(i / H) ? 0.f : q.b_hh[i]);
        p.bias = room.bias;
    }
    multiply(kernels, q, room, p);
    kernels.forward(recurrence(kernels, q, room, false));
}

// Gates that are adjacent both in the weights and in d_gates.
struct Gates {
    int64_t gate, at, count;  // the first one in the weights and in d_gates, and how many
};

// d_x = d_gates W_ih
static void to_input(const Kernels &kernels, const Sequence &q, const Room &room, Gates gates) {
    const int64_t H = q.units, I = q.inputs;
    Product p;
    p.m = q.total, p.n = I, p.k = gates.count * H, p.a = q.d_gates + gates.at * H, p.lda = kernels.shape(q.cell).saved * H;
    p.b = q.w_ih + gates.gate * H * I, p.ldb = I, p.c = q.d_x, p.ldc = I, p.add = gates.gate > 0;
    multiply(kernels, q, room, p);
}

// dW_ih = d_gates^T x, dW_hh = d_gates^T h_before, and the sums of d_gates for the bias, from one reading of d_gates.
static void to_weights(const Kernels &kernels, const Sequence &q, const Room &room, Gates gates, bool input, bool state) {
    const int64_t H = q.units, I = q.inputs, row = gates.gate * H;
    float *b_ih = input && q.d_b_ih ? q.d_b_ih + row : nullptr, *b_hh = state && q.d_b_hh ? q.d_b_hh + row : nullptr;
    Product p;
    p.m = gates.count * H, p.k = q.total, p.a = q.d_gates + gates.at * H, p.lda = kernels.shape(q.cell).saved * H;
    p.a_transposed = true, p.sums = b_ih ? b_ih : b_hh;
    if (input && q.d_w_ih) p.n = I, p.b = q.x, p.ldb = I, p.c = q.d_w_ih + row * I, p.ldc = I;
    if (state && q.d_w_hh) p.n2 = H, p.b2 = room.before, p.c2 = q.d_w_hh + row * H, p.ldc2 = H;
    if (p.n || p.n2 || p.sums) multiply(kernels, q, room, p);
    if (b_ih && b_hh) std::memcpy(b_hh, b_ih, gates.count * H * sizeof(float));
}

static void to_inputs_and_weights(const Kernels &kernels, const Sequence &q, const Room &room, bool input, bool state) {
    const Shape &shape = kernels.shape(q.cell);
    for (int64_t first = 0, end; first < shape.gates; first = end) {
        const int64_t at = shape.by_input[first], of_state = shape.by_state[first];
        for (end = first + 1; end < shape.gates; ++end)
            if (shape.by_input[end] != at + end - first || shape.by_state[end] != of_state + end - first) break;
        const Gates by_input{first, at, end - first}, by_state{first, of_state, end - first};
        if (input && q.d_x) to_input(kernels, q, room, by_input);
        if (!shape.apart(first)) {
            to_weights(kernels, q, room, by_input, input, state);
        } else {
            to_weights(kernels, q, room, by_input, input, false);
            to_weights(kernels, q, room, by_state, false, state);
        }
    }
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
    const int64_t width = kernels.shape(q.cell).saved * q.units;
    kernels.sums({threads_for(q, q.total * width, FEW_PRODUCTS), q.distinct, width, order, begin, q.d_gates, room.table});
    Sequence sums = q;
    sums.total = q.distinct, sums.d_gates = room.table;
    return sums;
}

void backward(const Kernels &kernels, const Sequence &q, const Room &room) {
    kernels.backward(recurrence(kernels, q, room, few_backward(q)));
    const Steps steps{q};
    const int64_t operand = kernels.shape(q.cell).operand;
    if (q.d_w_hh)
        for (int64_t s = 0; s < q.steps; ++s)
            for (int64_t b = 0; b < steps.rows(s); ++b) room.before[steps.flat(s) + b] = steps.before(s, b, operand);
    if (q.ids && (q.d_x || q.d_w_ih || q.d_b_ih))
        to_inputs_and_weights(kernels, by_id(kernels, q, room), room, true, false);
    to_inputs_and_weights(kernels, q, room, !q.ids, true);
}

}  // namespace bptt

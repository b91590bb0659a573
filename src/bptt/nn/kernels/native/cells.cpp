// Forward and backward of RNN, GRU and LSTM over a sequence, equation (1) of the design:
//
//     c_t = ∂l_t/∂s_t + w_t · c_{t+1} · ∂s_{t+1}/∂s_t                                   (1)
//
// Per step only what needs the step before is done here: the product with the recurrent weights and what is elementwise
// after it. Compiled once for each instruction set.
#include <array>
#include <utility>

#include "parts.h"
#include "team.h"
#include "vectors.h"

namespace bptt {
namespace BPTT_ISA {

constexpr int64_t CHUNK = 96;  // rows that go through the sequence together, so that their state stays in the cache
// A panel is WIDTH vectors a row of the product: two of the state's units, or one of each gate.
constexpr int width_of(int64_t cell) { return cell == RNN ? 2 : int(gates_of(cell)); }
constexpr int rows_of(int width) { return (BPTT_REGISTERS - width - 1) / width > 12 ? 12 : (BPTT_REGISTERS - width - 1) / width; }
constexpr int64_t units_of(int64_t cell) { return cell == RNN ? 2 * LANES : LANES; }

// ---- forward: gates from the state before, the state from the gates

template <int CELL, int ROWS> void forward_tile(const Recurrence &steps, int64_t s, int64_t row, int64_t panel) {
    constexpr int WIDTH = width_of(CELL), SAVED = saved_of(CELL);
    const Sequence &q = steps.q;
    const int64_t H = q.units, flat = steps.flat(s) + row, first = panel * units_of(CELL);
    V sum[ROWS][WIDTH];
    for (int r = 0; r < ROWS; ++r)  // what is read after the product
        for (int v = 0; v < WIDTH; ++v) {
            const int64_t at = first + v * (CELL == RNN ? LANES : H);
            __builtin_prefetch(q.gates + (flat + r) * SAVED * H + at, 1);
            if (q.ids) __builtin_prefetch(steps.given(flat + r) + at);
        }
    const bool inside = row < steps.rows(s - 1);
    const float *a = inside ? q.outputs + (steps.flat(s - 1) + row) * H : q.h0 ? q.h0 + row * H : nullptr;
    const float *packed = steps.packed + panel * (H + 1) * WIDTH * LANES;
    const V *of_zeros = (const V *)(packed + H * WIDTH * LANES);
    if (a) multiply<ROWS, WIDTH>(sum, a, H, packed, H);
    for (int r = 0; r < ROWS; ++r) {
        if (!a || steps.starts(s, row + r))
            for (int v = 0; v < WIDTH; ++v) sum[r][v] = of_zeros[v];
        const float *given = steps.given(flat + r) + first;
        float *gates = q.gates + (flat + r) * SAVED * H + first, *h = q.outputs + (flat + r) * H + first;
        int64_t n = H - first;
        if constexpr (CELL == RNN) {
            for (int v = 0; v < WIDTH && n > 0; ++v, n -= LANES) {
                V x = sum[r][v] + load(given + v * LANES, n);
                x = q.activation == TANH ? tanh(x) : q.activation == RELU ? (x < 0.f ? V{} : x) : x;
                store(h + v * LANES, x, n);
            }
        } else if constexpr (CELL == GRU) {
            V reset = sigmoid(sum[r][0] + load(given, n)), z = sigmoid(sum[r][1] + load(given + H, n));
            V inner = steps.bias_n ? sum[r][2] + load(steps.bias_n + first, n) : sum[r][2];
            V fresh = tanh(reset * inner + load(given + 2 * H, n));
            const float *before = steps.before(s, row + r, q.outputs, q.h0);
            V old = before ? load(before + first, n) : V{};
            store(gates, reset, n), store(gates + H, z, n), store(gates + 2 * H, fresh, n);
            store(gates + 3 * H, inner, n);
            store(h, fresh + z * (old - fresh), n);
        } else {
            V i = sigmoid(sum[r][0] + load(given, n)), f = sigmoid(sum[r][1] + load(given + H, n));
            V g = tanh(sum[r][2] + load(given + 2 * H, n)), o = sigmoid(sum[r][3] + load(given + 3 * H, n));
            const float *before = steps.before(s, row + r, q.cells, q.c0);
            V c = f * (before ? load(before + first, n) : V{}) + i * g;
            store(gates, i, n), store(gates + H, f, n), store(gates + 2 * H, g, n), store(gates + 3 * H, o, n);
            store(q.cells + (flat + r) * H + first, c, n);
            store(h, o * tanh(c), n);
        }
    }
}

// ---- backward: equation (1)

// The cotangent that comes to a row's state from the step after s: of h in `sum`, of c, or of h past the gates, in carry.
enum From { NEXT, END };

template <int CELL, int ROWS, int FROM> void backward_tile(const Recurrence &steps, int64_t s, int64_t row, int64_t panel) {
    constexpr int SAVED = saved_of(CELL), WIDTH = 2;
    const Sequence &q = steps.q;
    const int64_t H = q.units, K = gates_of(CELL) * H, first = panel * WIDTH * LANES;
    V sum[ROWS][WIDTH];
    const bool initial = s < 0 || row >= steps.rows(s);  // the row began at s + 1
    if (!initial)
        for (int r = 0; r < ROWS; ++r)  // what is read after the product
            for (int v = 0; v < WIDTH; ++v) {
                const int64_t at = steps.flat(s) + row + r, j = first + v * LANES;
                if (q.d_outputs) __builtin_prefetch(q.d_outputs + at * H + j);
                for (int i = 0; i < SAVED; ++i) {
                    __builtin_prefetch(q.gates + (at * SAVED + i) * H + j);
                    __builtin_prefetch(q.d_gates + (at * SAVED + i) * H + j, 1);
                }
                if (CELL == LSTM) __builtin_prefetch(q.cells + at * H + j);
            }
    if constexpr (FROM == NEXT)
        multiply<ROWS, WIDTH>(
            sum, q.d_gates + (steps.flat(s + 1) + row) * SAVED * H, SAVED * H, steps.packed + panel * K * WIDTH * LANES, K);
    for (int r = 0; r < ROWS; ++r) {
        const int64_t b = row + r;
        const bool cut = FROM == NEXT && steps.starts(s + 1, b);
        for (int v = 0; v < WIDTH; ++v) {
            const int64_t j = first + v * LANES, n = H - j;
            if (n <= 0) break;
            V dh = FROM == NEXT ? sum[r][v] : V{}, dc = {};
            float *carry = CELL == RNN ? nullptr : steps.carry + b * H + j;
            if constexpr (FROM == END) {
                if (q.d_hn) dh = load(q.d_hn + b * H + j, n);
                if (CELL == LSTM && q.d_cn) dc = load(q.d_cn + b * H + j, n);
            } else {
                if constexpr (CELL == GRU) dh += load(carry, n);
                if constexpr (CELL == LSTM) dc = load(carry, n);
                if (cut) dh = V{}, dc = V{};
            }
            if (initial) {
                if (q.d_h0) store(q.d_h0 + b * H + j, dh, n);
                if (CELL == LSTM && q.d_c0) store(q.d_c0 + b * H + j, dc, n);
                continue;
            }
            const int64_t flat = steps.flat(s) + b;
            if (q.weight) {
                const float w = steps.weight(s, b);
                dh = w == 0.f ? V{} : dh * w, dc = w == 0.f ? V{} : dc * w;
            }
            if (q.d_outputs) dh += load(q.d_outputs + flat * H + j, n);
            float *d = q.d_gates + flat * SAVED * H + j;
            if constexpr (CELL == RNN) {
                V h = load(q.outputs + flat * H + j, n);
                if (q.activation == TANH) dh *= 1.f - h * h;
                if (q.activation == RELU) dh = h <= 0.f ? V{} : dh;  // a NaN shows
                store(d, dh, n);
            } else if constexpr (CELL == GRU) {
                const float *g = q.gates + flat * SAVED * H + j;
                V reset = load(g, n), z = load(g + H, n), fresh = load(g + 2 * H, n), inner = load(g + 3 * H, n);
                const float *before = steps.before(s, b, q.outputs, q.h0);
                V old = before ? load(before + j, n) : V{};
                V dn = dh * (1.f - z) * (1.f - fresh * fresh);
                store(d, dn * inner * (reset * (1.f - reset)), n);
                store(d + H, dh * (old - fresh) * (z * (1.f - z)), n);
                store(d + 2 * H, dn * reset, n), store(d + 3 * H, dn, n);
                store(carry, dh * z, n);
            } else {
                const float *gates = q.gates + flat * SAVED * H + j;
                V i = load(gates, n), f = load(gates + H, n), g = load(gates + 2 * H, n), o = load(gates + 3 * H, n);
                const float *before = steps.before(s, b, q.cells, q.c0);
                V old = before ? load(before + j, n) : V{};
                V squashed = tanh(load(q.cells + flat * H + j, n));
                dc += dh * o * (1.f - squashed * squashed);
                store(d, dc * g * (i * (1.f - i)), n), store(d + H, dc * old * (f * (1.f - f)), n);
                store(d + 2 * H, dc * i * (1.f - g * g), n), store(d + 3 * H, dh * squashed * (o * (1.f - o)), n);
                store(carry, dc * f, n);
            }
        }
    }
}

// ---- rows in blocks, panels, steps

using Tile = void (*)(const Recurrence &, int64_t s, int64_t row, int64_t panel);

template <int CELL, size_t... N> constexpr auto forward_tiles(std::index_sequence<N...>) {
    return std::array<Tile, sizeof...(N)>{forward_tile<CELL, N + 1>...};
}
template <int CELL, int FROM, size_t... N> constexpr auto backward_tiles(std::index_sequence<N...>) {
    return std::array<Tile, sizeof...(N)>{backward_tile<CELL, N + 1, FROM>...};
}

// Rows [from, to) of step s in blocks of nearly equal size, over the panels of this part.
template <size_t MOST>
INLINE void each(const std::array<Tile, MOST> &tiles, const Recurrence &steps, int64_t s, int64_t from, int64_t to, const Part &part) {
    if (to <= from) return;
    const int64_t blocks = (to - from + int64_t(MOST) - 1) / int64_t(MOST);
    for (int64_t panel = part.panel0; panel < part.panel1; ++panel)
        for (int64_t block = 0; block < blocks; ++block) {
            int64_t a = from + (to - from) * block / blocks, b = from + (to - from) * (block + 1) / blocks;
            tiles[b - a - 1](steps, s, a, panel);
        }
}

template <int CELL> void forward_rows(const Recurrence &steps, const Part &part, int64_t from, int64_t to) {
    static constexpr auto tiles = forward_tiles<CELL>(std::make_index_sequence<rows_of(width_of(CELL))>());
    const Sequence &q = steps.q;
    const int64_t H = q.units, left = part.panel0 * units_of(CELL);
    const int64_t wide = std::min(H, part.panel1 * units_of(CELL)) - left;
    for (int64_t s = 0; s < q.steps; ++s) {
        const int64_t end = std::min(to, steps.rows(s)), old = std::clamp(steps.rows(s - 1), from, std::max(from, end));
        each(tiles, steps, s, from, old, part);
        each(tiles, steps, s, old, end, part);
        for (int64_t row = std::max(from, steps.rows(s + 1)); row < end; ++row) {
            const int64_t here = (steps.flat(s) + row) * H + left, there = row * H + left;
            std::memcpy(q.hn + there, q.outputs + here, wide * sizeof(float));
            if (CELL == LSTM) std::memcpy(q.cn + there, q.cells + here, wide * sizeof(float));
        }
        part.wait();
    }
}

template <int CELL> void backward_rows(const Recurrence &steps, const Part &part, int64_t from, int64_t to) {
    static constexpr auto next = backward_tiles<CELL, NEXT>(std::make_index_sequence<rows_of(2)>());
    static constexpr auto end = backward_tiles<CELL, END>(std::make_index_sequence<rows_of(2)>());
    const Sequence &q = steps.q;
    for (int64_t s = q.steps - 1; s >= 0; --s) {
        const int64_t here = std::clamp(steps.rows(s), from, to), after = std::clamp(steps.rows(s + 1), from, to);
        each(next, steps, s, from, std::min(here, after), part);
        each(end, steps, s, after, here, part);
        if (q.d_h0 || q.d_c0) each(next, steps, s, here, after, part);
        part.wait();
    }
    if (q.d_h0 || q.d_c0) each(next, steps, -1, from, std::clamp(steps.rows(0), from, to), part);
}

// ---- packing: panels of the recurrent weights, [panel][k][vector][lane], zeros beyond the last unit; forward a panel ends
// with its product with a state of zeros, which infinite weights make NaN

int64_t panels_of(int64_t units, int64_t wide) { return (units + wide - 1) / wide; }

void pack_forward(const Recurrence &steps, int64_t panel) {
    const Sequence &q = steps.q;
    const int width = width_of(q.cell);
    const int64_t H = q.units;
    float *out = steps.packed + panel * (H + 1) * width * LANES;
    for (int v = 0; v < width; ++v) {
        const int64_t unit = panel * units_of(q.cell) + (q.cell == RNN ? v * LANES : 0), gate = q.cell == RNN ? 0 : v;
        transposed(q.w_hh + (gate * H + unit) * H, H, H - unit, H, out + v * LANES, width * LANES);
    }
    if (!q.h0 || q.start) of_zeros(out, width, H);
}

void pack_backward(const Recurrence &steps, int64_t panel) {
    const Sequence &q = steps.q;
    const int64_t H = q.units, K = gates_of(q.cell) * H, first = panel * 2 * LANES, n = std::min<int64_t>(2 * LANES, H - first);
    float *out = steps.packed + panel * K * 2 * LANES;
    for (int64_t k = 0; k < K; ++k) {
        std::memcpy(out + k * 2 * LANES, q.w_hh + k * H + first, n * sizeof(float));
        std::memset(out + k * 2 * LANES + n, 0, (2 * LANES - n) * sizeof(float));
    }
}

// ---- entries

struct Call {
    const Recurrence &steps;
    bool backward;
    Barrier *barriers;  // one a thread, and one for all
};

void body(int thread, int threads, void *data) {
    const Call &call = *static_cast<Call *>(data);
    const Recurrence &steps = call.steps;
    const Sequence &q = steps.q;
    const Flush flush;
    const int64_t panels = panels_of(q.units, call.backward ? 2 * LANES : units_of(q.cell));
    for (int64_t p = panels * thread / threads; p < panels * (thread + 1) / threads; ++p)
        call.backward ? pack_backward(steps, p) : pack_forward(steps, p);
    call.barriers[steps.threads].wait(threads);
    const Part part = divide(thread, threads, q.rows, panels, call.barriers);
    for (int64_t from = part.row0; from < part.row1; from += CHUNK) {
        const int64_t to = std::min(part.row1, from + CHUNK);
        if (!call.backward)
            q.cell == RNN   ? forward_rows<RNN>(steps, part, from, to)
            : q.cell == GRU ? forward_rows<GRU>(steps, part, from, to)
                            : forward_rows<LSTM>(steps, part, from, to);
        else
            q.cell == RNN   ? backward_rows<RNN>(steps, part, from, to)
            : q.cell == GRU ? backward_rows<GRU>(steps, part, from, to)
                            : backward_rows<LSTM>(steps, part, from, to);
    }
}

void enter(const Recurrence &steps, bool backward) {
    std::unique_ptr<Barrier[]> barriers(new Barrier[steps.threads + 1]);
    Call call{steps, backward, barriers.get()};
    run(steps.threads, body, &call);
}

void forward(const Recurrence &steps) { enter(steps, false); }
void backward(const Recurrence &steps) { enter(steps, true); }

int64_t packed(int64_t cell, int64_t units) {
    const int64_t there = panels_of(units, units_of(cell)) * width_of(cell) * (units + 1);
    const int64_t back = panels_of(units, 2 * LANES) * 2 * gates_of(cell) * units;
    return std::max(there, back) * LANES;
}

}  // namespace BPTT_ISA

}  // namespace bptt

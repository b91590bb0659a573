// Forward and backward of any cell over a sequence, equation (1) of the design:
//
//     c_t = ∂l_t/∂s_t + w_{t+1} · c_{t+1} · ∂s_{t+1}/∂s_t                                   (1)
//
// Only what depends on the step before is done here, step by step: the product with the recurrent weights and the
// elementwise work after it. Compiled once for each instruction set.
#include <array>
#include <utility>

#include "cells/all.h"
#include "team.h"

namespace bptt {
namespace BPTT_ISA {

constexpr int64_t CHUNK = 96;  // rows that go through the sequence together, so that their state stays in the cache
// A panel is `width` vectors a row of the product, VECTORS of the state's units: two, or one of each gate.
constexpr int64_t vectors_of(const Shape &shape) { return shape.gates == 1 ? 2 : 1; }
constexpr int64_t width_of(const Shape &shape) { return shape.gates * vectors_of(shape); }
constexpr int64_t units_of(const Shape &shape) { return vectors_of(shape) * LANES; }
constexpr int rows_of(int width) { return (BPTT_REGISTERS - width - 1) / width > 12 ? 12 : (BPTT_REGISTERS - width - 1) / width; }

void normals(const StepKey &key, int64_t row, int rows, int64_t first, float *out);  // of noise.cpp

// The noise of a tile, two vectors a row.
template <int ROWS> struct Numbers {
    static_assert(ROWS <= NOISY_ROWS);
    alignas(64) float at[ROWS][2 * LANES];
    bool some;
    Numbers(const Recurrence &steps, int64_t s, int64_t row, int64_t first) : some(steps.keys && s >= 0) {
        if (some) normals(steps.keys[steps.t(s)], row, ROWS, first, at[0]);
    }
    const V *of(int r, int v) const { return some ? (const V *)(at[r] + v * LANES) : nullptr; }
};
template <> struct Numbers<0> {
    Numbers(const Recurrence &, int64_t, int64_t, int64_t) {}
    const V *of(int, int) const { return nullptr; }
};

// ---- forward: gates from the state before, the state from the gates

// The first unit of the v-th vector of a panel, and its first row in the weights.
INLINE int64_t unit_of(const Shape &shape, int64_t panel, int64_t v) {
    return panel * units_of(shape) + (shape.gates == 1 ? v * LANES : 0);
}
INLINE int64_t weight_row(const Shape &shape, int64_t panel, int64_t v, int64_t H) {
    return (shape.gates == 1 ? 0 : v) * H + unit_of(shape, panel, v);
}

template <class CELL, int ROWS, bool FEW> void forward_tile(const Recurrence &steps, int64_t s, int64_t row, int64_t panel) {
    constexpr Shape SHAPE = CELL::SHAPE;
    constexpr int WIDTH = width_of(SHAPE), VECTORS = vectors_of(SHAPE);
    const Sequence &q = steps.q;
    const int64_t H = q.units, flat = steps.flat(s) + row, first = panel * units_of(SHAPE), wide = SHAPE.saved * H;
    V sum[ROWS][WIDTH];
    for (int r = 0; r < ROWS && !FEW; ++r)  // what is read after the product
        for (int v = 0; v < WIDTH; ++v) {
            const int64_t at = first + v * (VECTORS > 1 ? LANES : H);
            __builtin_prefetch(q.gates + (flat + r) * wide + at, 1);
            if (steps.table) __builtin_prefetch(steps.given(flat + r, wide) + at);
        }
    const bool inside = row < steps.rows(s - 1);
    const float *initial = steps.initial(SHAPE.operand) ? steps.initial(SHAPE.operand) + row * H : nullptr;
    const float *a = inside ? steps.values(SHAPE.operand) + (steps.flat(s - 1) + row) * H : initial;
    const float *packed = steps.packed + panel * (H + 1) * WIDTH * LANES;
    const V *anew = (const V *)(packed + H * WIDTH * LANES);
    const Numbers<CELL::NOISE ? ROWS : 0> noise(steps, s, row, first);
    if constexpr (FEW) {
        alignas(64) float found[ROWS][WIDTH][LANES];
        const float *rows[ROWS];
        for (int r = 0; r < ROWS; ++r) {
            const float *before = steps.starts(s, row + r) ? steps.anew(SHAPE.operand) : a ? a + r * H : nullptr;
            rows[r] = before ? before : steps.packed;
        }
        for (int v = 0; v < WIDTH && unit_of(SHAPE, panel, v) < H; ++v)
            dots<ROWS>(rows, q.w_hh + weight_row(SHAPE, panel, v, H) * H, H, H - unit_of(SHAPE, panel, v), H, found[0][v], WIDTH * LANES);
        for (int r = 0; r < ROWS; ++r)
            for (int v = 0; v < WIDTH; ++v) sum[r][v] = *(const V *)found[r][v];
    } else if (a) {
        multiply<ROWS, WIDTH>(sum, a, H, packed, H);
    }
    for (int r = 0; r < ROWS; ++r) {
        if (!FEW && (!a || steps.starts(s, row + r)))
            for (int v = 0; v < WIDTH; ++v) sum[r][v] = anew[v];
        int64_t j = first;
        for (int v = 0; v < VECTORS && j < H; ++v, j += LANES)
            CELL::forward({steps, s, row + r, flat + r, j, H - j, wide, noise.of(r, v)}, &sum[r][v]);
    }
}

// The input's part of the gates of rows [row, row + ROWS) of the N, for a panel of the state's units.
template <class CELL, int ROWS> void input_tile(const Recurrence &steps, int64_t, int64_t row, int64_t panel) {
    constexpr Shape SHAPE = CELL::SHAPE;
    const Sequence &q = steps.q;
    const int64_t H = q.units, I = q.inputs;
    const float *rows[ROWS];
    for (int r = 0; r < ROWS; ++r) rows[r] = q.x + (q.ids ? q.ids[row + r] : row + r) * I;
    for (int v = 0; v < width_of(SHAPE) && unit_of(SHAPE, panel, v) < H; ++v) {
        const int64_t at = weight_row(SHAPE, panel, v, H), n = H - unit_of(SHAPE, panel, v);
        alignas(64) float found[ROWS][LANES];
        dots<ROWS>(rows, q.w_ih + at * I, I, n, I, found[0], LANES);
        V bias = q.b_ih ? load(q.b_ih + at, n) : V{};
        if (q.b_hh && !SHAPE.apart(at / H)) bias += load(q.b_hh + at, n);
        for (int r = 0; r < ROWS; ++r) store(q.gates + (row + r) * SHAPE.saved * H + at, *(const V *)found[r] + bias, n);
    }
}

// ---- backward: equation (1)

// Whether a cotangent reaches the state after step s from the next step, or from the end.
enum From { NEXT, END };

template <class CELL, int ROWS, int FROM, bool FEW> void backward_tile(const Recurrence &steps, int64_t s, int64_t row, int64_t panel) {
    constexpr Shape SHAPE = CELL::SHAPE;
    constexpr int WIDTH = 2;
    const Sequence &q = steps.q;
    const int64_t H = q.units, K = SHAPE.gates * H, first = panel * WIDTH * LANES, wide = SHAPE.saved * H;
    V sum[ROWS][WIDTH];
    const bool initial = s < 0 || row >= steps.rows(s);  // the row began at s + 1
    if (!initial)
        for (int r = 0; r < ROWS; ++r)  // what is read after the product
            for (int v = 0; v < WIDTH; ++v) {
                const int64_t at = steps.flat(s) + row + r, j = first + v * LANES;
                if (q.d_outputs) __builtin_prefetch(q.d_outputs + at * H + j);
                for (int i = 0; i < SHAPE.saved; ++i) {
                    __builtin_prefetch(q.gates + (at * SHAPE.saved + i) * H + j);
                    __builtin_prefetch(q.d_gates + (at * SHAPE.saved + i) * H + j, 1);
                }
                if (SHAPE.states > 1) __builtin_prefetch(q.cells + at * H + j);
            }
    if constexpr (FROM == NEXT)
    {
        const float *d = q.d_gates + (steps.flat(s + 1) + row) * wide;
        if constexpr (FEW)
            multiply_unpacked<ROWS, WIDTH>(sum, d, wide, q.w_hh + first, H, H - first, K);
        else
            multiply<ROWS, WIDTH>(sum, d, wide, steps.packed + panel * K * WIDTH * LANES, K);
    }
    const float *const ends[] = {q.d_hn, q.d_cn};
    float *const begins[] = {q.d_h0, q.d_c0}, *const starts[] = {q.d_start_h, q.d_start_c};
    const Numbers<CELL::NOISE ? ROWS : 0> noise(steps, s, row, first);
    for (int r = 0; r < ROWS; ++r) {
        const int64_t b = row + r;
        const bool cut = FROM == NEXT && steps.starts(s + 1, b);
        for (int v = 0; v < WIDTH && first + v * LANES < H; ++v) {
            const int64_t j = first + v * LANES, n = H - j;
            V d[SHAPE.states] = {};  // the cotangents of the states
            if constexpr (FROM == NEXT) {
                d[SHAPE.operand] = sum[r][v];
                if constexpr (SHAPE.carry != NONE) d[SHAPE.carry] += load(steps.carry + b * H + j, n);
            }
            const float w = initial || !q.weight ? 1.f : steps.weight(s, b);
            for (int i = 0; i < SHAPE.states; ++i) {
                if (FROM == END && ends[i]) d[i] = load(ends[i] + b * H + j, n);
                if (cut && starts[i]) store(starts[i] + b * H + j, load(starts[i] + b * H + j, n) + d[i], n);
                if (cut) d[i] = V{};
                if (initial && begins[i]) store(begins[i] + b * H + j, d[i], n);
                if (!initial && q.weight) d[i] = w == 0.f ? V{} : d[i] * w;
            }
            if (initial) continue;
            const int64_t flat = steps.flat(s) + b;
            if (q.d_outputs) d[0] += load(q.d_outputs + flat * H + j, n);
            CELL::backward({steps, s, b, flat, j, n, wide, noise.of(r, v)}, d);
        }
    }
}

// ---- rows in blocks, panels, steps

using Tile = void (*)(const Recurrence &, int64_t s, int64_t row, int64_t panel);

template <class CELL, size_t... N> constexpr auto forward_tiles(std::index_sequence<N...>) {
    return std::array<Tile, sizeof...(N)>{forward_tile<CELL, N + 1, false>...};
}
constexpr size_t POWERS = LANES < 8 ? 3 : 4;  // 1, 2, 4, 8 rows, as many as LANES at most
template <class CELL, size_t... N> constexpr auto few_tiles(std::index_sequence<N...>) {
    return std::array<Tile, sizeof...(N)>{forward_tile<CELL, 1 << N, true>...};
}
template <class CELL, size_t... N> constexpr auto input_tiles(std::index_sequence<N...>) {
    return std::array<Tile, sizeof...(N)>{input_tile<CELL, 1 << N>...};
}
template <class CELL, size_t... N> constexpr auto backward_tiles(std::index_sequence<N...>) {
    return std::array<Tile, sizeof...(N)>{backward_tile<CELL, N + 1, NEXT, false>...};
}
template <class CELL, int FROM, size_t... N> constexpr auto few_backward_tiles(std::index_sequence<N...>) {
    return std::array<Tile, sizeof...(N)>{backward_tile<CELL, 1 << N, FROM, true>...};
}

// Rows [from, to) of step s, in blocks of nearly equal size, over the panels of this part.
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

// Rows [from, to) in blocks of a power of two.
INLINE void each_power(const std::array<Tile, POWERS> &tiles, const Recurrence &steps, int64_t s, int64_t from, int64_t to, const Part &part) {
    for (int64_t panel = part.panel0; panel < part.panel1; ++panel)
        for (int64_t row = from, power; row < to; row += int64_t(1) << power) {
            for (power = int64_t(POWERS) - 1; int64_t(1) << power > to - row;) --power;
            tiles[power](steps, s, row, panel);
        }
}

// A few steps of a few rows: the weights are read in place.
template <class CELL> void forward_few(const Recurrence &steps, const Part &part) {
    static constexpr auto tiles = few_tiles<CELL>(std::make_index_sequence<POWERS>());
    static constexpr auto inputs = input_tiles<CELL>(std::make_index_sequence<POWERS>());
    const Sequence &q = steps.q;
    const int64_t H = q.units, left = part.panel0 * units_of(CELL::SHAPE);
    const int64_t wide = std::min(H, part.panel1 * units_of(CELL::SHAPE)) - left;
    each_power(inputs, steps, 0, 0, q.total, part);
    for (int64_t s = 0; s < q.steps; ++s) {
        each_power(tiles, steps, s, 0, q.rows, part);
        part.wait();
    }
    for (int64_t row = 0; row < q.rows; ++row) {
        const int64_t here = (steps.flat(q.steps - 1) + row) * H + left, there = row * H + left;
        std::memcpy(q.hn + there, q.outputs + here, wide * sizeof(float));
        if (q.cn) std::memcpy(q.cn + there, q.cells + here, wide * sizeof(float));
    }
}

template <class CELL> void forward_rows(const Recurrence &steps, const Part &part, int64_t from, int64_t to) {
    static constexpr auto tiles = forward_tiles<CELL>(std::make_index_sequence<rows_of(width_of(CELL::SHAPE))>());
    if (steps.few) return forward_few<CELL>(steps, part);
    const Sequence &q = steps.q;
    const int64_t H = q.units, left = part.panel0 * units_of(CELL::SHAPE);
    const int64_t wide = std::min(H, part.panel1 * units_of(CELL::SHAPE)) - left;
    for (int64_t s = 0; s < q.steps; ++s) {
        const int64_t end = std::min(to, steps.rows(s)), old = std::clamp(steps.rows(s - 1), from, std::max(from, end));
        each(tiles, steps, s, from, old, part);
        each(tiles, steps, s, old, end, part);
        for (int64_t row = std::max(from, steps.rows(s + 1)); row < end; ++row) {
            const int64_t here = (steps.flat(s) + row) * H + left, there = row * H + left;
            std::memcpy(q.hn + there, q.outputs + here, wide * sizeof(float));
            if (q.cn) std::memcpy(q.cn + there, q.cells + here, wide * sizeof(float));
        }
        part.wait();
    }
}

template <class CELL> void backward_rows(const Recurrence &steps, const Part &part, int64_t from, int64_t to) {
    static constexpr auto packed = backward_tiles<CELL>(std::make_index_sequence<rows_of(2)>());
    static constexpr auto unpacked = few_backward_tiles<CELL, NEXT>(std::make_index_sequence<POWERS>());
    static constexpr auto end = few_backward_tiles<CELL, END>(std::make_index_sequence<POWERS>());
    const auto next = [&](int64_t s, int64_t a, int64_t b) {
        steps.few ? each_power(unpacked, steps, s, a, b, part) : each(packed, steps, s, a, b, part);
    };
    const Sequence &q = steps.q;
    const bool begins = q.d_h0 || q.d_c0 || q.d_start_h || q.d_start_c;  // wanted: what comes before a row's first step
    for (int64_t s = q.steps - 1; s >= 0; --s) {
        const int64_t here = std::clamp(steps.rows(s), from, to), after = std::clamp(steps.rows(s + 1), from, to);
        next(s, from, std::min(here, after));
        each_power(end, steps, s, after, here, part);
        if (begins) next(s, here, after);
        part.wait();
    }
    if (begins) next(-1, from, std::clamp(steps.rows(0), from, to));
}

// ---- packing: panels of the recurrent weights, [panel][k][vector][lane], zeros beyond the last unit; forward a panel ends
// with its product with the state that rows start anew from

int64_t panels_of(int64_t units, int64_t wide) { return (units + wide - 1) / wide; }

void pack_forward(const Recurrence &steps, const Shape &shape, int64_t panel) {
    const Sequence &q = steps.q;
    const int64_t width = width_of(shape), H = q.units;
    float *out = steps.packed + panel * (H + 1) * width * LANES;
    for (int64_t v = 0; v < width; ++v)
        transposed(q.w_hh + weight_row(shape, panel, v, H) * H, H, H - unit_of(shape, panel, v), H, out + v * LANES, width * LANES);
    if (!steps.initial(shape.operand) || q.start) of_state(out, width, H, steps.anew(shape.operand));
}

void pack_backward(const Recurrence &steps, const Shape &shape, int64_t panel) {
    const Sequence &q = steps.q;
    const int64_t H = q.units, K = shape.gates * H, first = panel * 2 * LANES, n = std::min<int64_t>(2 * LANES, H - first);
    float *out = steps.packed + panel * K * 2 * LANES;
    for (int64_t k = 0; k < K; ++k) {
        std::memcpy(out + k * 2 * LANES, q.w_hh + k * H + first, n * sizeof(float));
        std::memset(out + k * 2 * LANES + n, 0, (2 * LANES - n) * sizeof(float));
    }
}

// ---- entries

// The functions of one cell.
struct Passes {
    Shape shape;
    void (*forward)(const Recurrence &, const Part &, int64_t from, int64_t to);
    void (*backward)(const Recurrence &, const Part &, int64_t from, int64_t to);
};
template <class... CELL> constexpr auto passes(List<CELL...>) {
    return std::array<Passes, sizeof...(CELL)>{Passes{CELL::SHAPE, forward_rows<CELL>, backward_rows<CELL>}...};
}
constexpr auto PASSES = passes(Cells());

struct Call {
    const Recurrence &steps;
    bool backward;
    Barrier *barriers;  // one a thread, and one for all
};

void body(int thread, int threads, void *data) {
    const Call &call = *static_cast<Call *>(data);
    const Recurrence &steps = call.steps;
    const Sequence &q = steps.q;
    const Passes &cell = PASSES[q.cell];
    const Flush flush;
    const int64_t panels = panels_of(q.units, call.backward ? 2 * LANES : units_of(cell.shape));
    for (int64_t p = panels * thread / threads; p < panels * (thread + 1) / threads && !steps.few; ++p)
        call.backward ? pack_backward(steps, cell.shape, p) : pack_forward(steps, cell.shape, p);
    if (!steps.few) call.barriers[steps.threads].wait(threads);
    const Part part = divide(thread, threads, q.rows, panels, call.barriers);
    for (int64_t from = part.row0; from < part.row1; from += CHUNK)
        (call.backward ? cell.backward : cell.forward)(steps, part, from, std::min(part.row1, from + CHUNK));
}

void enter(const Recurrence &steps, bool backward) {
    std::unique_ptr<Barrier[]> barriers(new Barrier[steps.threads + 1]);
    Call call{steps, backward, barriers.get()};
    run(steps.threads, body, &call);
}

void forward(const Recurrence &steps) { enter(steps, false); }
void backward(const Recurrence &steps) { enter(steps, true); }

const Shape &shape(int64_t cell) { return PASSES[cell].shape; }

int64_t packed(int64_t cell, int64_t units) {
    const Shape &of = shape(cell);
    const int64_t there = panels_of(units, units_of(of)) * width_of(of) * (units + 1);
    const int64_t back = panels_of(units, 2 * LANES) * 2 * of.gates * units;
    return std::max(there, back) * LANES;
}

}  // namespace BPTT_ISA

}  // namespace bptt

// What each parameter does to its own unit, E, carried over some steps, and a cotangent times E: one pass over E each.
#include <algorithm>
#include <type_traits>

#include "parts.h"
#include "team.h"
#include "vectors.h"

namespace bptt {
namespace BPTT_ISA {

constexpr int64_t SOME = 32;              // steps that are taken at once
constexpr int64_t FEW_ROWS = 64;          // a long running sum would round too often
constexpr int64_t FEW_NUMBERS = 1 << 17;  // below which one thread is faster

// part(width, j) for all of the columns [0, J), as many vectors at once as there are up to 4; width is a constant.
template <class F> static INLINE void in_parts(int64_t J, F part) {
    int64_t j = 0;
    for (; j + 4 * LANES <= J; j += 4 * LANES) part(std::integral_constant<int, 4>(), j);
    for (; j + 2 * LANES <= J; j += 2 * LANES) part(std::integral_constant<int, 2>(), j);
    for (; j < J; j += LANES) part(std::integral_constant<int, 1>(), j);
}

// Some steps of LANES units of D numbers: the product of `keep` over all of them, and what each step's factor has become
// at their end.
template <int D> struct Block {
    V whole[D][D], later[SOME][D][D], factor[D][SOME];
    I gone;  // units that keep nothing: 0 times an infinite number isn't 0
};

template <int D> static INLINE void multiply_up(const Influence &q, int64_t b, int64_t first, int64_t from, int64_t steps, Block<D> &block) {
    const int64_t n = q.units - first;
    for (int k = 0; k < D; ++k)
        for (int l = 0; l < D; ++l) block.whole[k][l] = all(k == l);
    for (int64_t t = steps - 1; t >= 0; --t) {
        const float *keep = q.keep + (((from + t) * q.rows + b) * D * D) * q.units + first;
        V step[D][D];
        for (int k = 0; k < D; ++k)
            for (int l = 0; l < D; ++l) step[k][l] = load(keep + (k * D + l) * q.units, n), block.later[t][k][l] = block.whole[k][l];
        for (int k = 0; k < D; ++k)
            for (int l = 0; l < D; ++l) {
                V sum{};
                for (int m = 0; m < D; ++m) sum += block.later[t][k][m] * step[m][l];
                block.whole[k][l] = sum;
            }
    }
    block.gone = I{} == 0;
    for (int k = 0; k < D; ++k)
        for (int l = 0; l < D; ++l) block.gone &= block.whole[k][l] == 0.f;
}

// The row e[k] (J,) of each number of one unit; x is the operand of the first step.
template <int D>
static INLINE void add_row(const Influence &q, const Block<D> &block, int lane, int64_t steps, const float *x, float *e, int64_t stride) {
    const auto of = [lane](const V &v) __attribute__((always_inline)) { return ((const float *)&v)[lane]; };
    const bool gone = block.gone[lane];
    in_parts(q.width, [&](auto width, int64_t j) __attribute__((always_inline)) {
        V old[D][width], sum[D][width];
        for (int l = 0; l < D; ++l)
            for (int v = 0; v < width; ++v) old[l][v] = gone ? V{} : load(e + l * stride + j + v * LANES, q.width - j - v * LANES);
        for (int k = 0; k < D; ++k)
            for (int v = 0; v < width; ++v) {
                sum[k][v] = of(block.whole[k][0]) * old[0][v];
                for (int l = 1; l < D; ++l) sum[k][v] += of(block.whole[k][l]) * old[l][v];
            }
        for (int64_t t = 0; t < steps; ++t)
            for (int v = 0; v < width; ++v) {
                const V y = x ? load(x + t * q.rows * q.width + j + v * LANES, q.width - j - v * LANES) : all(1.f);
                for (int k = 0; k < D; ++k) sum[k][v] += of(block.factor[k][t]) * y;
            }
        for (int k = 0; k < D; ++k)
            for (int v = 0; v < width; ++v) store(e + k * stride + j + v * LANES, sum[k][v], q.width - j - v * LANES);
    });
}

// The same for all units of a block, of rows of one number.
template <int D>
static INLINE void add_column(const Influence &q, const Block<D> &block, int64_t n, int64_t steps, const float *x, float *e, int64_t stride) {
    V old[D], sum[D];
    for (int l = 0; l < D; ++l) old[l] = block.gone ? V{} : load(e + l * stride, n);
    for (int k = 0; k < D; ++k) {
        sum[k] = block.whole[k][0] * old[0];
        for (int l = 1; l < D; ++l) sum[k] += block.whole[k][l] * old[l];
        for (int64_t t = 0; t < steps; ++t) sum[k] += block.factor[k][t] * (x ? x[t * q.rows] : 1.f);
    }
    for (int k = 0; k < D; ++k) store(e + k * stride, sum[k], n);
}

// LANES units of one batch row.
template <int D> static void absorb_units(const Influence &q, int64_t b, int64_t first) {
    const int64_t n = std::min<int64_t>(LANES, q.units - first), stride = q.groups * q.units * q.width;
    Block<D> block;
    for (int64_t from = 0; from < q.steps; from += SOME) {
        const int64_t steps = std::min(SOME, q.steps - from);
        multiply_up(q, b, first, from, steps, block);
        for (int64_t g = 0; g < q.groups; ++g) {
            for (int64_t t = 0; t < steps; ++t) {
                const float *factor = q.factor + (((from + t) * q.rows + b) * D * q.groups + g) * q.units + first;
                for (int k = 0; k < D; ++k) {
                    V sum{};
                    for (int l = 0; l < D; ++l) sum += block.later[t][k][l] * load(factor + l * q.groups * q.units, n);
                    block.factor[k][t] = sum;
                }
            }
            const float *x = q.operand ? q.operand + (from * q.rows + b) * q.width : nullptr;
            float *e = q.entries + b * D * stride + (g * q.units + first) * q.width;
            if (q.width == 1)
                add_column(q, block, n, steps, x, e, stride);
            else
                for (int lane = 0; lane < n; ++lane) add_row(q, block, lane, steps, x, e + lane * q.width, stride);
        }
    }
}

static void absorbing(int thread, int threads, void *data) {
    const Influence &q = *static_cast<const Influence *>(data);
    const Flush flush;
    const int64_t blocks = (q.units + LANES - 1) / LANES, all_blocks = q.rows * blocks;
    for (int64_t i = all_blocks * thread / threads; i < all_blocks * (thread + 1) / threads; ++i)
        (q.numbers == 1 ? absorb_units<1> : absorb_units<2>)(q, i / blocks, i % blocks * LANES);
}

// The sum over batch rows and numbers of c times E, of one row of a parameter; entries whose cotangent is 0 left out.
static INLINE void pull_row(const Influence &q, int64_t g, int64_t h) {
    const int64_t count = q.rows * q.numbers, each = q.groups * q.units * q.width;
    const float *c = q.cotangents + h, *e = q.entries + (g * q.units + h) * q.width;
    in_parts(q.width, [&](auto width, int64_t j) __attribute__((always_inline)) {
        V sum[width] = {}, few[width] = {};
        for (int64_t i = 0; i < count; ++i) {
            if (const float x = c[i * q.units]; x != 0.f)
                for (int v = 0; v < width; ++v) few[v] += x * load(e + i * each + j + v * LANES, q.width - j - v * LANES);
            if (i % FEW_ROWS == FEW_ROWS - 1 || i == count - 1)
                for (int v = 0; v < width; ++v) sum[v] += few[v], few[v] = V{};
        }
        for (int v = 0; v < width; ++v) store(q.sums + (g * q.units + h) * q.width + j + v * LANES, sum[v], q.width - j - v * LANES);
    });
}

// The same for LANES rows of one number.
static INLINE void pull_column(const Influence &q, int64_t g, int64_t h) {
    const int64_t count = q.rows * q.numbers, n = q.units - h;
    V sum{}, few{};
    for (int64_t i = 0; i < count; ++i) {
        const V x = load(q.cotangents + i * q.units + h, n), e = load(q.entries + (i * q.groups + g) * q.units + h, n);
        few += x == 0.f ? V{} : x * e;
        if (i % FEW_ROWS == FEW_ROWS - 1 || i == count - 1) sum += few, few = V{};
    }
    store(q.sums + g * q.units + h, sum, n);
}

static void pulling(int thread, int threads, void *data) {
    const Influence &q = *static_cast<const Influence *>(data);
    const Flush flush;
    const int64_t blocks = (q.units + LANES - 1) / LANES, all_blocks = q.groups * blocks;
    for (int64_t i = all_blocks * thread / threads; i < all_blocks * (thread + 1) / threads; ++i) {
        const int64_t g = i / blocks, first = i % blocks * LANES;
        if (q.width == 1)
            pull_column(q, g, first);
        else
            for (int64_t h = first; h < std::min<int64_t>(first + LANES, q.units); ++h) pull_row(q, g, h);
    }
}

static int threads_of(const Influence &q) {
    return q.rows * q.numbers * q.groups * q.units * q.width < FEW_NUMBERS ? 1 : int(q.threads);
}

void absorb(const Influence &q) { run(threads_of(q), absorbing, const_cast<Influence *>(&q)); }
void pull(const Influence &q) { run(threads_of(q), pulling, const_cast<Influence *>(&q)); }

}  // namespace BPTT_ISA
}  // namespace bptt

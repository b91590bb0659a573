// A readout that keeps the cotangents of its scores, (N, V): one pass makes them and the losses, another one the gradients.
//
// Each thread goes through rows of its own, a block at a time, so that the block, the packed weights and the thread's own
// part of the weights' gradient stay in the cache; the parts are added up in the end.
#include "parts.h"
#include "team.h"
#include "tiles.h"

namespace bptt {
namespace BPTT_ISA {

constexpr int64_t ROWS = 192;  // of a block

void scores(const Scores &scores);  // of readout.cpp

struct Kept {
    const ::Readout &r;
    float *packed;  // W in panels; after it a place for each thread
    Barrier barrier;
    int64_t wide = padded(r.classes), stride = ((wide + 15) / 16 | 1) * 16;  // a power of two would crowd one set of the cache
    int64_t panels = (std::max(wide * r.inputs, padded(r.inputs) * r.classes) + 15) / 16 * 16;
    int64_t place = (ROWS * stride + (r.inputs + 1) * wide + 15) / 16 * 16;
    Kept(const ::Readout &readout, float *room) : r(readout), packed(room) {}
    float *block(int thread) const { return packed + panels + thread * place; }
    float *d_w(int thread) const { return block(thread) + ROWS * stride; }  // (I, wide)
    float *d_b(int thread) const { return d_w(thread) + r.inputs * wide; }
};

// C (m, n) (+)= A B + bias with panels of B `next` floats apart; TRANSPOSED: A in memory is (K, m).
template <int TRANSPOSED>
static void multiply_block(int64_t m, int64_t n, int64_t K, const float *a, int64_t lda, const float *b, int64_t ldb, int64_t next, float *c, int64_t ldc, const float *bias, bool add) {
    const int64_t blocks = (m + MOST - 1) / MOST;
    for (int64_t j = 0; j < n; j += WIDE, b += next)
        for (int64_t i = 0; i < blocks; ++i) {
            const int64_t row = m * i / blocks, rows = m * (i + 1) / blocks - row;
            TILES[TRANSPOSED][rows - 1](
                a + row * (TRANSPOSED ? 1 : lda), lda, b, ldb, K, c + row * ldc + j, ldc, n - j, bias ? bias + j : nullptr, add);
        }
}

static void losses(int thread, int threads, void *data) {
    Kept &kept = *static_cast<Kept *>(data);
    const ::Readout &r = kept.r;
    const int64_t I = r.inputs, V = r.classes, panels = kept.wide / WIDE, last = r.rows * (thread + 1) / threads;
    const Flush flush;
    for (int64_t p = panels * thread / threads; p < panels * (thread + 1) / threads; ++p)
        pack_transposed(r.w + p * WIDE * I, I, V - p * WIDE, I, kept.packed + p * I * WIDE);
    kept.barrier.wait(threads);
    Scores s{};
    s.threads = 1, s.add = s.differentiate = true, s.count = s.classes = V, s.stride = kept.stride, s.ignored = r.ignored;
    s.targets = r.targets, s.at = kept.block(thread), s.losses = r.losses, s.kept = r.kept;
    for (s.row = r.rows * thread / threads; s.row < last; s.row += s.rows) {
        s.rows = std::min(ROWS, last - s.row);
        multiply_block<0>(s.rows, V, I, r.x + s.row * I, I, kept.packed, WIDE, I * WIDE, s.at, s.stride, r.b, false);
        scores(s);
    }
}

// The cotangents of a block of rows, for those of the losses, with zeros up to `wide`; and their sums over the rows.
static void take(const Kept &kept, int64_t row, int64_t rows, float *z, float *sums, bool add) {
    const ::Readout &r = kept.r;
    float d[ROWS];
    for (int64_t i = 0; i < rows; ++i)
        d[i] = r.targets[row + i] == r.ignored ? 0.f : r.d_losses ? r.d_losses[row + i] : 1.f;
    for (int64_t j = 0; j < kept.wide; j += LANES) {
        const int64_t n = r.classes - j;
        V sum{};
        for (int64_t i = 0; i < rows; ++i)
            sum += *(V *)(z + i * kept.stride + j) = n > 0 ? load(r.kept + (row + i) * r.classes + j, n) * d[i] : V{};
        *(V *)(sums + j) = add ? *(V *)(sums + j) + sum : sum;
    }
}

// The threads' sums in d_w and d_b, the columns of one thread.
static void add_up(const Kept &kept, int thread, int threads) {
    const ::Readout &r = kept.r;
    const int64_t vectors = (r.inputs + LANES - 1) / LANES, wide = kept.wide;
    const int64_t first = vectors * thread / threads * LANES, last = std::min(r.inputs, vectors * (thread + 1) / threads * LANES);
    float *total = kept.d_w(0), *block = kept.block(thread);
    for (int other = 1; other < threads && r.d_w; ++other)
        for (int64_t j = first * wide; j < last * wide; j += LANES) *(V *)(total + j) += *(V *)(kept.d_w(other) + j);
    for (int64_t i = first; i < last && r.d_w; i += LANES) {
        transposed(total + i * wide, wide, r.inputs - i, r.classes, block, LANES);
        for (int64_t v = 0; v < r.classes; ++v) store(r.d_w + v * r.inputs + i, *(V *)(block + v * LANES), r.inputs - i);
    }
    for (int64_t j = 0; j < r.classes && r.d_b && thread == 0; ++j) {
        r.d_b[j] = 0.f;
        for (int other = 0; other < threads; ++other) r.d_b[j] += kept.d_b(other)[j];
    }
}

static void gradients(int thread, int threads, void *data) {
    Kept &kept = *static_cast<Kept *>(data);
    const ::Readout &r = kept.r;
    const int64_t I = r.inputs, V = r.classes, panels = r.d_x ? padded(I) / WIDE : 0;
    const int64_t first = r.rows * thread / threads, last = r.rows * (thread + 1) / threads;
    const Flush flush;
    for (int64_t p = panels * thread / threads; p < panels * (thread + 1) / threads; ++p)
        for (int64_t v = 0; v < V; ++v) pack_row(r.w + v * I + p * WIDE, I - p * WIDE, kept.packed + (p * V + v) * WIDE);
    kept.barrier.wait(threads);
    float *z = kept.block(thread);
    for (int64_t row = first, rows; row < last; row += rows) {
        rows = std::min(ROWS, last - row);
        take(kept, row, rows, z, kept.d_b(thread), row > first);
        if (r.d_x) multiply_block<0>(rows, I, V, z, kept.stride, kept.packed, WIDE, V * WIDE, r.d_x + row * I, I, nullptr, false);
        if (r.d_w) multiply_block<1>(I, kept.wide, rows, r.x + row * I, I, z, kept.stride, WIDE, kept.d_w(thread), kept.wide, nullptr, row > first);
    }
    kept.barrier.wait(threads);
    add_up(kept, thread, threads);
}

int64_t kept_room(const ::Readout &r, int threads) {
    const Kept kept(r, nullptr);
    return kept.panels + threads * kept.place;
}

void kept(const ::Readout &r, int threads, float *room) {
    Kept kept(r, room);
    run(threads, r.losses ? losses : gradients, &kept);
}

}  // namespace BPTT_ISA
}  // namespace bptt

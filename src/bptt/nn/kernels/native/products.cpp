// Matrix products of all steps at once: the input's part of the gates, the gradients of weights and inputs.
//
// Blocks of K rows of B are packed in panels by all threads; each thread multiplies them with its own rows of C, whose
// part of A it copies to a place of its own, CHUNK rows at a time, so that both lie in the cache.
#include "parts.h"
#include "team.h"
#include "tiles.h"

namespace bptt {
namespace BPTT_ISA {

constexpr int64_t FEW_PANELS = 4;
constexpr int64_t AHEAD = 12;  // rows of A that are prefetched: they are too far apart for the machine to guess
constexpr int64_t DEPTH = 256, CHUNK = 8 * MOST, STRIDE = DEPTH + LANES;  // a power of two would crowd one set of the cache

// The columns of B and after them those of B2, in panels. A panel may have columns of both if that makes them fewer.
struct Columns {
    const Product &p;
    int64_t second = padded(p.n + p.n2) < padded(p.n) + padded(p.n2) ? p.n : padded(p.n);  // where B2 begins
    int64_t panels = padded(second + p.n2) / WIDE;

    // How many columns of B the panel has, and how many of B2; the first one of these.
    int64_t of_first(int64_t panel) const { return std::clamp<int64_t>(p.n - panel * WIDE, 0, WIDE); }
    int64_t of_second(int64_t panel) const {
        return std::max<int64_t>(std::min((panel + 1) * WIDE, second + p.n2) - std::max(panel * WIDE, second), 0);
    }
    int64_t in_second(int64_t panel) const { return std::max<int64_t>(panel * WIDE - second, 0); }

    // Panel [k][j] of rows [k0, k0 + K), zeros beyond the last column.
    void pack(int64_t panel, int64_t k0, int64_t K, float *out) const {
        const int64_t n = of_first(panel), n2 = of_second(panel), j = panel * WIDE, j2 = in_second(panel);
        if (n && p.b_transposed) return pack_transposed(p.b + j * p.ldb + k0, p.ldb, n, K, out);
        for (int64_t k = k0; k < k0 + K; ++k, out += WIDE) {
            const float *in = n2 && p.b2[k] ? p.b2[k] + j2 : nullptr;
            if (!n) {
                pack_row(in, n2, out);
                continue;
            }
            pack_row(p.b + k * p.ldb + j, n, out);
            if (in) std::memcpy(out + n, in, n2 * sizeof(float));
        }
    }
};

// C (+)= a tile of n columns.
void put_tile(const float *tile, int64_t rows, int64_t n, float *c, int64_t ldc, bool add) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t j = 0; j < n; ++j) c[r * ldc + j] = tile[r * WIDE + j] + (add ? c[r * ldc + j] : 0.f);
}

// A chunk of rows of A in tiles, for one block of K: as rows, or where A is transposed as columns [k][row of the tile].
struct Chunk {
    int64_t from, count, blocks;
    int64_t edge(int64_t block) const { return count * block / blocks; }
    int64_t rows(int64_t block) const { return edge(block + 1) - edge(block); }

    void pack(const Product &p, int64_t k0, int64_t K, float *out) const {
        if (!p.a_transposed) {
            for (int64_t row = from; row < from + count; ++row, out += STRIDE)
                std::memcpy(out, p.a + row * p.lda + k0, K * sizeof(float));
            return;
        }
        float sums[CHUNK] = {}, few[CHUNK] = {};  // of at most 16 rows: a long running sum would round too often
        for (int64_t k = 0; k < K; ++k) {
            const float *in = p.a + (k0 + k) * p.lda + from;
            if (k0 + k + AHEAD < p.k)
                for (int64_t r = 0; r < count; r += 16) __builtin_prefetch(in + AHEAD * p.lda + r);
            for (int64_t block = 0; block < blocks; ++block)
                std::memcpy(out + edge(block) * STRIDE + k * rows(block), in + edge(block), rows(block) * sizeof(float));
            if (!p.sums) continue;
            for (int64_t r = 0; r < count; ++r) few[r] += in[r];
            if (k % 16 == 15 || k == K - 1)
                for (int64_t r = 0; r < count; ++r) sums[r] += few[r], few[r] = 0.f;
        }
        if (p.sums)
            for (int64_t r = 0; r < count; ++r) p.sums[from + r] = sums[r] + (k0 || p.add ? p.sums[from + r] : 0.f);
    }
};

// A panel of a chunk, for one block of K. begins: it is the first block.
void multiply_panel(const Columns &columns, const Chunk &chunk, int64_t panel, const float *a, int64_t lda, const float *b, int64_t K, bool begins) {
    const Product &p = columns.p;
    const int64_t n = columns.of_first(panel), n2 = columns.of_second(panel);
    const bool add = p.add || !begins;
    for (int64_t block = 0; block < chunk.blocks; ++block) {
        const int64_t first = chunk.edge(block), count = chunk.rows(block), row = chunk.from + first, step = p.a_transposed ? count : lda;
        const ProductTile multiply = TILES[p.a_transposed][count - 1];
        if (n && n2) {
            alignas(64) float both[MOST * WIDE];
            multiply(a + first * lda, step, b, WIDE, K, both, WIDE, WIDE, nullptr, false);
            put_tile(both, count, n, p.c + row * p.ldc + panel * WIDE, p.ldc, add);
            put_tile(both + n, count, n2, p.c2 + row * p.ldc2, p.ldc2, add);
        } else if (n) {
            const float *bias = p.bias && begins ? p.bias + panel * WIDE : nullptr;
            multiply(a + first * lda, step, b, WIDE, K, p.c + row * p.ldc + panel * WIDE, p.ldc, n, bias, add);
        } else {
            multiply(a + first * lda, step, b, WIDE, K, p.c2 + row * p.ldc2 + columns.in_second(panel), p.ldc2, n2, nullptr, add);
        }
    }
}

struct Multiplication {
    const Product &p;
    Barrier *barrier;
};

void multiplication(int thread, int threads, void *data) {
    const Product &p = static_cast<Multiplication *>(data)->p;
    Barrier &barrier = *static_cast<Multiplication *>(data)->barrier;
    const Flush flush;
    const Columns columns{p};
    const int64_t first = p.m * thread / threads, last = p.m * (thread + 1) / threads, panels = columns.panels;
    alignas(64) float rows[CHUNK * STRIDE];
    for (int64_t k0 = 0, turn = 0; k0 < p.k; k0 += DEPTH, turn ^= 1) {
        const int64_t K = std::min(DEPTH, p.k - k0);
        float *packed = p.packed + turn * DEPTH * panels * WIDE;  // the other one may still be read
        for (int64_t panel = panels * thread / threads; panel < panels * (thread + 1) / threads; ++panel)
            columns.pack(panel, k0, K, packed + panel * K * WIDE);
        barrier.wait(threads);
        for (int64_t from = first; from < last; from += CHUNK) {
            const int64_t count = std::min(CHUNK, last - from);
            const Chunk chunk{from, count, (count + MOST - 1) / MOST};
            const bool here = !p.a_transposed && panels <= FEW_PANELS && (panels <= 2 || p.lda % 1024);  // not worth copying
            if (!here) chunk.pack(p, k0, K, rows);
            const float *a = here ? p.a + from * p.lda + k0 : rows;
            const int64_t lda = here ? p.lda : STRIDE;
            for (int64_t panel = 0; panel < panels; ++panel)
                multiply_panel(columns, chunk, panel, a, lda, packed + panel * K * WIDE, K, k0 == 0);
        }
    }
}

// ---- few rows of A or, if A is transposed, of B: nothing is packed, and the large array is read once

// C of a few rows, the columns of one thread: four rows of B at a time.
void few_rows(int thread, int threads, void *data) {
    const Product &p = *static_cast<const Product *>(data);
    const Flush flush;
    const int64_t vectors = (p.n + LANES - 1) / LANES, begin = vectors * thread / threads * LANES;
    const int64_t end = std::min(p.n, vectors * (thread + 1) / threads * LANES);
    for (int64_t r = 0; r < p.m && !p.add; ++r)
        for (int64_t j = begin; j < end; ++j) p.c[r * p.ldc + j] = p.bias ? p.bias[j] : 0.f;
    for (int64_t k = 0; k < p.k; k += 4) {
        const int64_t K = std::min<int64_t>(4, p.k - k);
        for (int64_t j = begin; j < end; j += LANES) {
            V w[4] = {};
            for (int64_t i = 0; i < K; ++i) w[i] = load(p.b + (k + i) * p.ldb + j, end - j);
            for (int64_t r = 0; r < p.m; ++r) {
                const float *a = p.a + r * p.lda + k;
                V sum = a[0] * w[0];
                for (int64_t i = 1; i < K; ++i) sum += a[i] * w[i];
                float *c = p.c + r * p.ldc + j;
                store(c, load(c, end - j) + sum, end - j);
            }
        }
    }
}

// Four rows of C = A^T B; a row of B that is null stands for zeros.
INLINE void few_terms(const float (&a)[FEW][4], int64_t K, int64_t rows, const float *const *b, int64_t n, float *c, int64_t ldc, bool add) {
    for (int64_t j = 0; j < n; j += LANES) {
        V sum[4] = {};
        for (int64_t k = 0; k < K; ++k) {
            const V y = b[k] ? load(b[k] + j, n - j) : V{};
            for (int i = 0; i < 4; ++i) sum[i] += a[k][i] * y;
        }
        for (int64_t i = 0; i < rows; ++i) store(c + i * ldc + j, add ? sum[i] + load(c + i * ldc + j, n - j) : sum[i], n - j);
    }
}

void few_sums(int thread, int threads, void *data) {
    const Product &p = *static_cast<const Product *>(data);
    const Flush flush;
    const float *b[FEW] = {};
    for (int64_t k = 0; k < p.k && p.n; ++k) b[k] = p.b + k * p.ldb;
    const int64_t last = p.m * (thread + 1) / threads;
    for (int64_t row = p.m * thread / threads; row < last; row += 4) {
        const int64_t rows = std::min<int64_t>(4, last - row);
        float a[FEW][4] = {};
        for (int64_t k = 0; k < p.k; ++k) std::memcpy(a[k], p.a + k * p.lda + row, rows * sizeof(float));
        if (p.n) few_terms(a, p.k, rows, b, p.n, p.c + row * p.ldc, p.ldc, p.add);
        if (p.n2) few_terms(a, p.k, rows, p.b2, p.n2, p.c2 + row * p.ldc2, p.ldc2, p.add);
        for (int64_t i = 0; i < rows && p.sums; ++i) {
            if (!p.add) p.sums[row + i] = 0.f;
            for (int64_t k = 0; k < p.k; ++k) p.sums[row + i] += a[k][i];
        }
    }
}

int64_t product_packed(int64_t n, int64_t n2) { return 2 * DEPTH * (padded(n) + padded(n2)); }

void product(const Product &p) {
    if (p.a_transposed && p.k <= FEW && !p.bias) return run(p.threads, few_sums, const_cast<Product *>(&p));
    if (!p.a_transposed && !p.b_transposed && p.m <= FEW && !p.n2) return run(p.threads, few_rows, const_cast<Product *>(&p));
    Barrier barrier;
    Multiplication data{p, &barrier};
    run(p.threads, multiplication, &data);
}

// Defined in steps.cpp, for this instruction set.
const Shape &shape(int64_t cell);
int64_t packed(int64_t cell, int64_t units);
void forward(const Recurrence &steps);
void backward(const Recurrence &steps);
void sums(const Sums &sums);  // of sums.cpp
void scores(const Scores &scores);  // of readout.cpp
int64_t kept_room(const ::Readout &r, int threads);  // of kept.cpp
void kept(const ::Readout &r, int threads, float *room);
void absorb(const ::Influence &influence);  // of influence.cpp
void pull(const ::Influence &influence);

bool supported() { return BPTT_SUPPORTED; }

}  // namespace BPTT_ISA

#define BPTT_TEXT(x) #x
#define BPTT_NAME(x) BPTT_TEXT(x)
extern const Kernels BPTT_TABLE;
const Kernels BPTT_TABLE{
    BPTT_NAME(BPTT_ISA), BPTT_ISA::supported, BPTT_ISA::shape, BPTT_ISA::packed, BPTT_ISA::forward, BPTT_ISA::backward,
    BPTT_ISA::product_packed, BPTT_ISA::product, BPTT_ISA::sums, BPTT_ISA::scores,
    BPTT_ISA::kept_room, BPTT_ISA::kept, BPTT_ISA::absorb, BPTT_ISA::pull};

}  // namespace bptt

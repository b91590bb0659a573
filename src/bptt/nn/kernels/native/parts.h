// What a layer is made of: the steps, and the products of all steps at once.
#pragma once
#include <cstdint>

#include "sequence.h"

namespace bptt {

constexpr int64_t gates_of(int64_t cell) { return cell == RNN ? 1 : cell == GRU ? 3 : 4; }
constexpr int64_t saved_of(int64_t cell) { return cell == RNN ? 1 : 4; }

// A sequence by step in the order of its evaluation, s = 0 .. T-1.
struct Steps {
    const ::Sequence &q;
    int64_t t(int64_t s) const { return q.reverse ? q.steps - 1 - s : s; }
    int64_t rows(int64_t s) const { return s < 0 || s >= q.steps ? 0 : q.sizes ? q.sizes[t(s)] : q.rows; }
    int64_t flat(int64_t s) const { return q.offsets ? q.offsets[t(s)] : t(s) * q.rows; }
    bool starts(int64_t s, int64_t row) const { return q.start && q.start[t(s) * q.rows + row]; }
    float weight(int64_t s, int64_t row) const {
        return !q.weight ? 1.f : q.weight_rows ? q.weight[t(s) * q.rows + row] : q.weight[t(s)];
    }
    // The row's values before step s, of outputs and h0 or of cells and c0; null for zeros.
    const float *before(int64_t s, int64_t row, const float *values, const float *initial) const {
        if (starts(s, row)) return nullptr;
        if (row < rows(s - 1)) return values + (flat(s - 1) + row) * q.units;
        return initial ? initial + row * q.units : nullptr;
    }
};

// The steps' work, the input's part of the gates computed already.
struct Recurrence : Steps {
    const float *table;   // (distinct, S H) the input's part of the gates, for q.ids; without them it is in q.gates
    int threads;          // at most so many
    const float *bias_n;  // (H,) GRU: bias of the recurrent part of n; null: none
    float *packed;        // scratch of `Kernels::packed` floats, on a multiple of 64 bytes
    float *carry;         // (B, H) scratch of the backward pass of GRU and LSTM
    // The input's part of the gates of a row of the N.
    const float *given(int64_t row) const { return q.ids ? table + q.ids[row] * width() : q.gates + row * width(); }
    int64_t width() const { return saved_of(q.cell) * q.units; }
};

// C (+)= A B + bias, float32: C (m, n), A (m, k), B (k, n), each with the distance of its rows in memory.
struct Product {
    int threads = 1;
    bool a_transposed = false, b_transposed = false;  // the array in memory is (k, m), (n, k)
    bool add = false;                                 // add to what C holds
    int64_t m = 0, n = 0, k = 0, lda = 0, ldb = 0, ldc = 0;
    const float *a = nullptr, *b = nullptr;
    const float *bias = nullptr;  // (n,) or null
    float *c = nullptr;
    float *sums = nullptr;        // (m,) gets the sums of A over k; null: not wanted; only with a_transposed
    float *packed = nullptr;      // scratch of `Kernels::product_packed` floats, on a multiple of 64 bytes
    // More columns of B, for one A read once: C2 (m, n2) (+)= A B2. n2 = 0: none.
    int64_t n2 = 0, ldc2 = 0;
    const float *const *b2 = nullptr;  // (k,) the rows of B2; null for one of zeros
    float *c2 = nullptr;
};

// Sums of the rows of A (N, width) that belong together, into C (groups, width); zeros for a group of none.
struct Sums {
    int threads;
    int64_t groups, width;
    const int64_t *order, *begin;  // (N,) the rows, group after group; (groups + 1,) where each begins
    const float *a;
    float *c;
};

// One instruction set.
struct Kernels {
    const char *name;
    bool (*supported)();
    int64_t (*packed)(int64_t cell, int64_t units);
    void (*forward)(const Recurrence &);
    void (*backward)(const Recurrence &);
    int64_t (*product_packed)(int64_t n, int64_t n2);
    void (*product)(const Product &);
    void (*sums)(const Sums &);
};

}  // namespace bptt

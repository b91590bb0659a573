// What a layer is made of: the steps, and the products of all steps at once.
#pragma once
#include <cstdint>

#include "noise.h"
#include "sequence.h"

#define INLINE inline __attribute__((always_inline))

namespace bptt {

constexpr int64_t NONE = -1;
constexpr int64_t FEW = 8;  // steps, and rows, up to which nothing is packed; as in native.py

// What the passes know of a cell. Its states are h, in outputs, and possibly a second one, in cells.
struct Shape {
    int64_t gates, saved, states;  // G, S, and how many states
    int64_t operand;               // the state that the recurrent weights multiply
    int64_t carry;                 // the state that also has a cotangent that bypasses the gates, or NONE
    int64_t by_input[4], by_state[4];  // for each gate, the array of d_gates for W_ih, and for W_hh
    // Whether the gate's recurrent part is separate from the input's, with a bias of its own.
    constexpr bool apart(int64_t gate) const { return by_input[gate] != by_state[gate]; }
};

// A sequence by step in the order of its evaluation, s = 0 .. T-1.
struct Steps {
    const ::Sequence &q;
    INLINE int64_t t(int64_t s) const { return q.reverse ? q.steps - 1 - s : s; }
    INLINE int64_t rows(int64_t s) const { return s < 0 || s >= q.steps ? 0 : q.sizes ? q.sizes[t(s)] : q.rows; }
    INLINE int64_t flat(int64_t s) const { return q.offsets ? q.offsets[t(s)] : t(s) * q.rows; }
    INLINE bool starts(int64_t s, int64_t row) const { return q.start && q.start[t(s) * q.rows + row]; }
    INLINE float weight(int64_t s, int64_t row) const {
        return !q.weight ? 1.f : q.weight_rows ? q.weight[t(s) * q.rows + row] : q.weight[t(s)];
    }
    INLINE float *values(int64_t state) const { return state ? q.cells : q.outputs; }
    INLINE const float *initial(int64_t state) const { return state ? q.c0 : q.h0; }
    INLINE const float *anew(int64_t state) const { return state ? q.start_c : q.start_h; }
    // The row's state before step s; null for zeros.
    INLINE const float *before(int64_t s, int64_t row, int64_t state) const {
        if (starts(s, row)) return anew(state);
        if (row < rows(s - 1)) return values(state) + (flat(s - 1) + row) * q.units;
        return initial(state) ? initial(state) + row * q.units : nullptr;
    }
};

// The work of the steps; the input's part of the gates is already computed.
struct Recurrence : Steps {
    const float *table;   // (distinct, S H) the input's part of the gates of each id; null: it is in q.gates
    int threads;          // at most so many
    float *packed;        // scratch of `Kernels::packed` floats, on a multiple of 64 bytes
    float *carry;         // (B, H) scratch of the backward pass of cells that carry
    const StepKey *keys;  // (T,) of the noise; null: none, or not needed
    bool few;             // nothing is packed; in the forward pass the input's part of the gates isn't computed yet
    // The input's part of the gates for one of the N rows.
    INLINE const float *given(int64_t row, int64_t wide) const { return table ? table + q.ids[row] * wide : q.gates + row * wide; }
};

// C (+)= A B + bias, float32: C (m, n), A (m, k), B (k, n), each with the distance between its rows in memory.
struct Product {
    int threads = 1;
    bool a_transposed = false, b_transposed = false;  // the array in memory is (k, m), (n, k); the latter only without B2
    bool add = false;                                 // add to what C and `sums` hold
    int64_t m = 0, n = 0, k = 0, lda = 0, ldb = 0, ldc = 0;
    const float *a = nullptr, *b = nullptr;
    const float *bias = nullptr;  // (n,) or null; only without B2
    float *c = nullptr;
    float *sums = nullptr;        // (m,) gets the sums of A over k; null: not wanted; only with a_transposed
    float *packed = nullptr;      // scratch of `Kernels::product_packed` floats, on a multiple of 64 bytes
    // More columns of B, so that A is read only once: C2 (m, n2) (+)= A B2. n2 = 0: none.
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

// Scores (rows, count) of rows of a readout for the classes [first, first + count); they become their own cotangents.
struct Scores {
    int threads;
    bool add, differentiate;  // add them to the sums of exponentials; turn them into cotangents, by the norms
    int64_t rows, count, row, first, classes, stride, ignored;
    const int64_t *targets;   // this and all below: of all rows
    float *at;                // the scores, with room up to a multiple of LANES
    float *sums, *largest, *picked, *norms, *losses;  // norms may be null with all classes at once
    const float *d_losses;    // null: ones
    float *kept;              // (N, V) where the cotangents go; null: in the place of the scores
};

// One instruction set.
struct Kernels {
    const char *name;
    bool (*supported)();
    const Shape &(*shape)(int64_t cell);
    int64_t (*packed)(int64_t cell, int64_t units);
    void (*forward)(const Recurrence &);
    void (*backward)(const Recurrence &);
    int64_t (*product_packed)(int64_t n, int64_t n2);
    void (*product)(const Product &);
    void (*sums)(const Sums &);
    void (*scores)(const Scores &);
    int64_t (*kept_room)(const ::Readout &, int threads);
    void (*kept)(const ::Readout &, int threads, float *room);
    void (*absorb)(const ::Influence &);
    void (*pull)(const ::Influence &);
};

}  // namespace bptt

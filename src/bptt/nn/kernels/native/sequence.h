// A recurrent layer over a whole sequence: what the Python side hands over, and nothing else.
//
// All arrays are float32, row-major and contiguous. N is the number of rows of all steps together, G the gates of the
// cell (1 RNN, 3 GRU, 4 LSTM), S the arrays a row of `gates` holds (1, 4, 4). A pointer may be null where it says so.
#pragma once
#include <cstdint>

#define BPTT_API __attribute__((visibility("default")))

extern "C" {

enum Cell : int32_t { RNN = 0, GRU = 1, LSTM = 2 };
enum Activation : int32_t { IDENTITY = 0, TANH = 1, RELU = 2 };

struct Sequence {
    int32_t cell, activation;      // activation: of the RNN
    int32_t reverse;               // 1: from the last step to the first
    int32_t threads;               // at most so many
    int64_t steps, rows, units;    // T, B, H
    const int64_t *sizes;          // (T,) rows of each step, falling; null: B in each
    const int64_t *offsets;        // (T,) first row of each step in the N rows; null: t B
    const uint8_t *start;          // (T, B) 1: the row starts from zeros at that step; null: none does
    const float *weight;           // (T,) or (T, B): w of equation (1); null: 1
    int64_t weight_rows;           // 1 if weight has rows, else 0
    const float *recurrent;        // (G H, H)
    const float *bias_n;           // (H,) GRU: bias of the recurrent part of n; null: none
    float *packed;                 // scratch of `bptt_packed` floats, on a multiple of 64 bytes
    float *gates;                  // (N, S H) in: the input's part. Out: RNN h; GRU r, z, n, W_n h + b_n; LSTM i, f, g, o
    float *cells;                  // (N, H) LSTM: c
    float *outputs;                // (N, H) h; for an RNN the same array as gates
    const float *h0, *c0;          // (B, H); null: zeros
    float *hn, *cn;                // (B, H) the state after the last step
    const float *d_outputs;        // (N, H); null: zeros
    const float *d_hn, *d_cn;      // (B, H); null: zeros
    float *d_gates;                // (N, S H) RNN da; GRU dr, dz, r dn, dn; LSTM di, df, dg, do
    float *carry;                  // (B, H) scratch of GRU and LSTM
    float *d_h0, *d_c0;            // (B, H); null: not wanted
};

// C (+)= A B + bias, float32: C (m, n), A (m, k), B (k, n), each with the distance of its rows in memory.
struct Product {
    int32_t threads;
    int32_t a_transposed, b_transposed;  // 1: the array in memory is (k, m), (n, k)
    int32_t add;                         // 1: add to what C holds
    int64_t m, n, k, lda, ldb, ldc;
    const float *a, *b;
    const float *bias;                   // (n,) or null
    float *c;
    float *sums;                         // (m,) gets the sums of A over k; null: not wanted; only with a_transposed
    float *packed;                       // scratch of `bptt_product_packed` floats, on a multiple of 64 bytes
    // More columns of B, for one A read once: C2 (m, n2) (+)= A B2, the rows of B2 from two places. n2 = 0: none.
    int64_t n2, ld2, ldc2;
    int64_t split;                       // rows [0, split) of B2 lie at first2, the others at then2; null: zeros
    const float *first2, *then2;
    const uint8_t *skip2;                // (k,) 1: that row of B2 counts as zeros; null: none does
    float *c2;
};

typedef void (*Parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);

// The OpenMP runtime to take threads from: GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the one that
// the process has loaded already. Without a call, or with null, everything runs on the calling thread.
BPTT_API void bptt_use_openmp(Parallel parallel, int (*thread)(), int (*threads)());

// The instruction sets that this machine has kernels for: "generic", "avx2" or "avx512", the i-th; null after the last.
BPTT_API const char *bptt_isa(int32_t i);

// Floats of `packed` for a layer.
BPTT_API int64_t bptt_packed(int32_t isa, int32_t cell, int64_t units);

BPTT_API void bptt_forward(int32_t isa, const Sequence *sequence);
BPTT_API void bptt_backward(int32_t isa, const Sequence *sequence);

BPTT_API int64_t bptt_product_packed(int32_t isa, const Product *product);
BPTT_API void bptt_product(int32_t isa, const Product *product);
}

// A recurrent layer over a whole sequence: what the Python side hands over, and nothing else.
//
// All arrays are float32, row-major and contiguous. N is the number of rows of all steps together, G the gates of the
// cell (1 RNN, 3 GRU, 4 LSTM), S the arrays a row of `gates` holds (1, 4, 4). A pointer may be null where it says so.
#pragma once
#include <cstdint>

#define BPTT_API __attribute__((visibility("default")))

extern "C" {

enum Cell : int64_t { RNN = 0, GRU = 1, LSTM = 2 };
enum Activation : int64_t { IDENTITY = 0, TANH = 1, RELU = 2 };

struct Sequence {                                   // 8 bytes each
    int64_t cell, activation;                       // activation: of the RNN
    int64_t reverse;                                // 1: from the last step to the first
    int64_t threads;                                // at most so many
    int64_t steps, rows, inputs, units, total;      // T, B, I, H, N
    int64_t distinct;                               // rows of x: N, or with ids any number
    int64_t weight_rows;                            // 1 if weight has rows, else 0
    const int64_t *sizes;                           // (T,) rows of each step, falling; null: B in each
    const int64_t *offsets;                         // (T,) first row of each step in the N rows; null: t B
    const uint8_t *start;                           // (T, B) 1: the row starts from zeros at that step; null: none does
    const float *weight;                            // (T,) or (T, B): w of equation (1); null: 1
    const int64_t *ids;                             // (N,) rows of x, the same one for many; null: each its own
    const float *x;                                 // (distinct, I)
    const float *w_ih, *w_hh;                       // (G H, I), (G H, H)
    const float *b_ih, *b_hh;                       // (G H,); null: none
    float *gates;                                   // (N, S H) RNN h; GRU r, z, n, W_n h + b_n; LSTM i, f, g, o
    float *cells;                                   // (N, H) LSTM: c
    float *outputs;                                 // (N, H) h; for an RNN the same array as gates
    const float *h0, *c0;                           // (B, H); null: zeros
    float *hn, *cn;                                 // (B, H) the state after the last step
    const float *d_outputs;                         // (N, H); null: zeros
    const float *d_hn, *d_cn;                       // (B, H); null: zeros
    float *d_gates;                                 // (N, S H) RNN da; GRU dr, dz, r dn, dn; LSTM di, df, dg, do
    float *d_x, *d_w_ih, *d_w_hh, *d_b_ih, *d_b_hh;  // as x, w_ih, ...; null: not wanted
    float *d_h0, *d_c0;                             // (B, H); null: not wanted
};

typedef void (*Parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);

// The OpenMP runtime to take threads from: GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the one that
// the process has loaded already. Without a call, or with null, everything runs on the calling thread.
BPTT_API void bptt_use_openmp(Parallel parallel, int (*thread)(), int (*threads)());

// The instruction sets that this machine has kernels for: "generic", "avx2" or "avx512", the i-th; null after the last.
BPTT_API const char *bptt_isa(int32_t i);

// How many numbers of 8 bytes a Sequence holds: what a caller packs must be that long.
BPTT_API int32_t bptt_numbers();

// Fill gates, cells, outputs, hn and cn; d_gates and the gradients that are wanted. 1: there was no memory.
// 2: an id is no row of x, and nothing was done.
BPTT_API int32_t bptt_forward(int32_t isa, const Sequence *sequence);
BPTT_API int32_t bptt_backward(int32_t isa, const Sequence *sequence);
}

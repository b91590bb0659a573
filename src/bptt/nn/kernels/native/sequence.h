// A recurrent layer over a whole sequence: what the Python side hands over, and nothing else.
//
// All arrays are float32, row-major and contiguous. N is the number of rows of all steps together, G the gates of the
// cell, S how many arrays a row of `gates` holds; both are in its header in cells/. A pointer may be null where noted.
#pragma once
#include <cstdint>

#define BPTT_API __attribute__((visibility("default")))

extern "C" {

enum Cell : int64_t { RNN = 0, GRU = 1, LSTM = 2, RATE = 3, VOLTAGE = 4 };
enum Activation : int64_t { IDENTITY = 0, TANH = 1, RELU = 2, SIGMOID = 3, SOFTPLUS = 4 };
enum { BY_UNIT = 2 };  // P, the number of parameters by unit, for a cell that has them

struct Sequence {                                   // 8 bytes each
    int64_t cell, activation;                       // activation: of a cell that has a choice
    int64_t reverse;                                // 1: from the last step to the first
    int64_t threads;                                // at most so many
    int64_t steps, rows, inputs, units, total;      // T, B, I, H, N
    int64_t distinct;                               // rows of x: N, or with ids any number
    int64_t weight_rows;                            // 1 if weight has rows, else 0
    int64_t noisy, key, clock;                      // noisy: 1 if the cell draws numbers; of key, step t those of clock + t
    const int64_t *sizes;                           // (T,) rows of each step, falling; null: B in each
    const int64_t *offsets;                         // (T,) first row of each step in the N rows; null: t B
    const uint8_t *start;                           // (T, B) 1: the row starts anew at that step; null: none does
    const float *weight;                            // (T,) or (T, B): w of equation (1); null: 1
    const int64_t *ids;                             // (N,) rows of x, the same one for many; null: each its own
    const float *x;                                 // (distinct, I)
    const float *h0, *c0;                           // (B, H) the states before the first step; null: zeros
    const float *w_ih, *w_hh;                       // (G H, I), (G H, H)
    const float *b_ih, *b_hh;                       // (G H,); null: none, b_hh alone too
    const float *start_h, *start_c;                 // (H,) those of a row that starts anew; null: zeros, else h0 isn't
    const float *by_unit;                           // (P, H) of a cell that has such
    float *gates;                                   // (N, S H) what the cell saves; null forward: not wanted
    float *cells;                                   // (N, H) its second state; null forward: not wanted
    float *outputs;                                 // (N, H) h; for an RNN the same array as gates
    float *hn, *cn;                                 // (B, H) the states after the last step; may be h0, c0
    const float *d_outputs;                         // (N, H); null: zeros
    const float *d_hn, *d_cn;                       // (B, H); null: zeros
    float *d_gates;                                 // (N, S H) the cotangents of the gates; null: not wanted
    float *d_x, *d_h0, *d_c0;                       // as x, h0, c0; null: not wanted, as of all that follow
    float *d_w_ih, *d_w_hh, *d_b_ih, *d_b_hh;       // as w_ih, ...
    float *d_start_h, *d_start_c;                   // (B, H) added to: sums over a row's starts
    float *d_by_unit;                               // (B, P, H) added to: sums over a row's steps
};

enum Reduction : int64_t { EACH = 0, SUM = 1, MEAN = 2 };

// The cross entropy of the scores x W^T + b, row by row, or reduced over the rows that aren't ignored to one number.
struct Readout {                                    // 8 bytes each
    int64_t threads;                                // at most so many
    int64_t rows, inputs, classes;                  // N, I, V
    int64_t ignored;                                // the target of rows whose loss is 0
    int64_t reduction;
    const float *x, *w, *b;                         // (N, I), (V, I), (V,) or null
    const int64_t *targets;                         // (N,)
    const float *d_losses;                          // (N,), reduced (1,); null: ones
    float *losses;                                  // (N,), reduced (1,); null: not wanted, and norms or kept are given
    float *norms;                                   // (N,) the logarithms of the sums of exponentials; with kept null
    float *d_x, *d_w, *d_b;                         // as x, w, b; null: not wanted
    float *kept;                                    // (N, V) the scores' cotangents for ones: to be written with the
};                                                  // losses, then given for the gradients; null: they aren't kept

// What each parameter does to its own unit: the entries of one parameter of G groups of a row for each unit.
struct Influence {                                  // 8 bytes each
    int64_t threads;                                // at most so many
    int64_t steps, rows, numbers;                   // T, B, d: 1 or 2 numbers of a unit's state
    int64_t groups, units, width;                   // G, H, J
    float *entries;                                 // (B, d, G, H, J)
    const float *keep;                              // (T, B, d, d, H) the derivative of a unit's numbers by those before
    const float *factor;                            // (T, B, d, G, H) by the product of the parameter's row and operand
    const float *operand;                           // (T, B, J); null: ones
    const float *cotangents;                        // (B, d, H)
    float *sums;                                    // (G, H, J)
};

typedef void (*Parallel)(void (*body)(void *), void *data, unsigned threads, unsigned flags);

// The OpenMP runtime to take threads from: GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the one that the
// process has already loaded. Without this call, or with null, everything runs on the calling thread.
BPTT_API void bptt_use_openmp(Parallel parallel, int (*thread)(), int (*threads)());

// The instruction sets that this machine has kernels for: "generic", "avx2" or "avx512", the i-th; null after the last.
BPTT_API const char *bptt_isa(int32_t i);

// How many numbers of 8 bytes a Sequence holds; what a caller packs must be that long.
BPTT_API int32_t bptt_numbers();

// Fill gates, cells, outputs, hn and cn; d_gates and the gradients that are wanted. 1: there was no memory.
// 2: an id isn't a row of x, and nothing was done.
BPTT_API int32_t bptt_forward(int32_t isa, const Sequence *sequence);
BPTT_API int32_t bptt_backward(int32_t isa, const Sequence *sequence);

// Fill losses and norms, and the gradients that are wanted. 1: there was no memory. 2: a target isn't a class.
BPTT_API int32_t bptt_readout(int32_t isa, const Readout *readout);

// Take the entries over all steps, by `keep`, `factor` and `operand`.
BPTT_API int32_t bptt_absorb(int32_t isa, const Influence *influence);
// Fill the sums over rows and numbers of cotangents times entries; an entry whose cotangent is zero adds nothing.
BPTT_API int32_t bptt_pull(int32_t isa, const Influence *influence);
}

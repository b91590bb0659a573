// A layer forward and backward with the kernels of one instruction set.
#pragma once
#include "parts.h"

namespace bptt {

// Scratch of a call.
struct Room {
    float *packed;         // for the steps or a product, on a multiple of 64 bytes
    float *carry, *bias;   // (B, H), (G H,)
    const float **before;  // (N,) the states before the rows
    float *table;          // with ids: (distinct, S H), the input's part of the gates or the sums of d_gates
    int64_t *order;        // with ids: (N + distinct + 1,)
    StepKey *keys;         // (T,); null: no noise, or not needed
};

void forward(const Kernels &kernels, const ::Sequence &q, const Room &room);
void backward(const Kernels &kernels, const ::Sequence &q, const Room &room);

// A readout with its loss, of losses.cpp; it needs so many floats.
int64_t readout_room(const Kernels &kernels, const ::Readout &r);
void readout(const Kernels &kernels, const ::Readout &r, float *room);

}  // namespace bptt

// The activations of cells that have a choice, and their derivatives as functions of their values y.
#pragma once
#include "../sequence.h"
#include "../vectors.h"

namespace bptt {
namespace BPTT_ISA {

INLINE V activated(int64_t f, V x) {
    return f == TANH ? tanh(x) : f == RELU ? (x < 0.f ? V{} : x) : f == SIGMOID ? sigmoid(x) : f == SOFTPLUS ? softplus(x) : x;
}

// f'(x) c; a relu that is off stops even an infinite c, while a NaN gets through.
INLINE V derived(int64_t f, V y, V c) {
    if (f == RELU) return y <= 0.f ? V{} : c;
    V power;
    return f == TANH ? c * (1.f - y * y)
         : f == SIGMOID ? c * (y * (1.f - y))
         : f == SOFTPLUS ? c * -expm1(y > 87.f ? all(-87.f) : -y, power)
                         : c;
}

}  // namespace BPTT_ISA
}  // namespace bptt

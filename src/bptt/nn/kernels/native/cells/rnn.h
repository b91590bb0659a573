// h = f(gates), f the identity, tanh or relu. `gates` and `outputs` are one array.
#pragma once
#include "cell.h"

namespace bptt {
namespace BPTT_ISA {

struct Rnn {
    static constexpr Shape SHAPE{1, 1, 1, 0, NONE, {0}, {0}};
    static constexpr bool NOISE = false;

    static INLINE void forward(const Place &p, const V *sum) {
        const V x = sum[0] + p.given(0);
        const int64_t f = p.steps.q.activation;
        p.put(0, f == TANH ? tanh(x) : f == RELU ? (x < 0.f ? V{} : x) : x);
    }

    static INLINE void backward(const Place &p, const V *d) {
        const V h = p.now(0);
        V dh = d[0];
        if (p.steps.q.activation == TANH) dh *= 1.f - h * h;
        if (p.steps.q.activation == RELU) dh = h <= 0.f ? V{} : dh;  // a NaN gets through
        p.gate(0, dh);
    }
};

}  // namespace BPTT_ISA
}  // namespace bptt

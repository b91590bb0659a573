// c = f c_before + i g, h = o tanh(c). Saved: i, f, g, o.
#pragma once
#include "cell.h"

namespace bptt {
namespace BPTT_ISA {

struct Lstm {
    static constexpr Shape SHAPE{4, 4, 2, 0, 1, {0, 1, 2, 3}, {0, 1, 2, 3}};
    static constexpr bool NOISE = false;

    static INLINE void forward(const Place &p, const V *sum) {
        const V i = sigmoid(sum[0] + p.given(0)), f = sigmoid(sum[1] + p.given(1));
        const V g = tanh(sum[2] + p.given(2)), o = sigmoid(sum[3] + p.given(3));
        const V c = f * p.old(1) + i * g;
        p.save(0, i), p.save(1, f), p.save(2, g), p.save(3, o);
        p.put(1, c), p.put(0, o * tanh(c));
    }

    static INLINE void backward(const Place &p, const V *d) {
        const V dh = d[0], i = p.saved(0), f = p.saved(1), g = p.saved(2), o = p.saved(3), old = p.old(1);
        const V squashed = tanh(p.now(1)), dc = d[1] + dh * o * (1.f - squashed * squashed);
        p.gate(0, dc * g * (i * (1.f - i))), p.gate(1, dc * old * (f * (1.f - f)));
        p.gate(2, dc * i * (1.f - g * g)), p.gate(3, dh * squashed * (o * (1.f - o)));
        p.carry(dc * f);
    }
};

}  // namespace BPTT_ISA
}  // namespace bptt

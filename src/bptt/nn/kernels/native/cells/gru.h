// h = (1 - z) n + z h_before, n = tanh(its gate + r inner), inner = W_n h + b_n. Saved: r, z, n, inner.
// Cotangents of dr, dz, r dn and dn: W_hn gets the third, W_in the fourth.
#pragma once
#include "cell.h"

namespace bptt {
namespace BPTT_ISA {

struct Gru {
    static constexpr Shape SHAPE{3, 4, 1, 0, 0, {0, 1, 3}, {0, 1, 2}};
    static constexpr bool NOISE = false;

    static INLINE void forward(const Place &p, const V *sum) {
        const V r = sigmoid(sum[0] + p.given(0)), z = sigmoid(sum[1] + p.given(1));
        const V inner = p.with_bias(2, sum[2]), fresh = tanh(r * inner + p.given(2)), old = p.old(0);
        p.save(0, r), p.save(1, z), p.save(2, fresh), p.save(3, inner);
        p.put(0, fresh + z * (old - fresh));
    }

    static INLINE void backward(const Place &p, const V *d) {
        const V dh = d[0], r = p.saved(0), z = p.saved(1), fresh = p.saved(2), inner = p.saved(3), old = p.old(0);
        const V dn = dh * (1.f - z) * (1.f - fresh * fresh);
        p.gate(0, dn * inner * (r * (1.f - r))), p.gate(1, dh * (old - fresh) * (z * (1.f - z)));
        p.gate(2, dn * r), p.gate(3, dn);
        p.carry(dh * z);
    }
};

}  // namespace BPTT_ISA
}  // namespace bptt

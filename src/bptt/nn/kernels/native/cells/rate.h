// h = (1 - α) h_before + α y + s ξ, y = f(gates): α and s by unit. Saved: y.
#pragma once
#include "activations.h"
#include "cell.h"

namespace bptt {
namespace BPTT_ISA {

struct Rate {
    static constexpr Shape SHAPE{1, 1, 1, 0, 0, {0}, {0}};
    static constexpr bool NOISE = true;

    static INLINE void forward(const Place &p, const V *sum) {
        const V alpha = p.by_unit(0), y = activated(p.steps.q.activation, sum[0] + p.given(0));
        V h = (1.f - alpha) * p.old(0) + alpha * y;
        if (p.noise) h += p.by_unit(1) * *p.noise;
        p.save(0, y), p.put(0, h);
    }

    static INLINE void backward(const Place &p, const V *d) {
        const V alpha = p.by_unit(0), y = p.saved(0), dh = d[0];
        p.gate(0, derived(p.steps.q.activation, y, alpha * dh));
        p.carry((1.f - alpha) * dh);
        if (p.steps.q.d_by_unit) {
            p.to_unit(0, dh * (y - p.old(0)));
            if (p.noise) p.to_unit(1, dh * *p.noise);
        }
    }
};

}  // namespace BPTT_ISA
}  // namespace bptt

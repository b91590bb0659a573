// h = (1 - α) h_before + α a + s ξ, a the gates, whose recurrent part is W f(h_before): α and s by unit. Saved: a.
// The second state is f(h), a function of the first; it is what the recurrent weights multiply.
#pragma once
#include "activations.h"
#include "cell.h"

namespace bptt {
namespace BPTT_ISA {

struct Voltage {
    static constexpr Shape SHAPE{1, 1, 2, 1, 0, {0}, {0}};
    static constexpr bool NOISE = true;

    static INLINE void forward(const Place &p, const V *sum) {
        const V alpha = p.by_unit(0), a = sum[0] + p.given(0);
        V h = (1.f - alpha) * p.old(0) + alpha * a;
        if (p.noise) h += p.by_unit(1) * *p.noise;
        p.save(0, a), p.put(0, h), p.put(1, activated(p.steps.q.activation, h));
    }

    static INLINE void backward(const Place &p, const V *d) {
        const V alpha = p.by_unit(0), dh = d[0] + derived(p.steps.q.activation, p.now(1), d[1]);
        p.gate(0, alpha * dh);
        p.carry((1.f - alpha) * dh);
        if (p.steps.q.d_by_unit) {
            p.to_unit(0, dh * (p.saved(0) - p.old(0)));
            if (p.noise) p.to_unit(1, dh * *p.noise);
        }
    }
};

}  // namespace BPTT_ISA
}  // namespace bptt

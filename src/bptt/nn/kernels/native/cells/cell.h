// What a cell's header is given: a vector of units of one row at one step.
#pragma once
#include "../parts.h"
#include "../vectors.h"

namespace bptt {
namespace BPTT_ISA {

struct Place {
    const Recurrence &steps;
    int64_t s, row, flat, j, n;  // the step, the row, its index among all rows; n or more units from the j-th on
    int64_t wide;                // S H
    const V *noise;              // the units' normal numbers; null: no noise

    INLINE V given(int64_t gate) const { return load(steps.given(flat, wide) + gate * steps.q.units + j, n); }
    INLINE V with_bias(int64_t gate, V x) const {  // for a gate whose recurrent part has its own bias
        return steps.q.b_hh ? x + load(steps.q.b_hh + gate * steps.q.units + j, n) : x;
    }
    INLINE V saved(int64_t i) const { return load(steps.q.gates + flat * wide + i * steps.q.units + j, n); }
    INLINE void save(int64_t i, V x) const { store(steps.q.gates + flat * wide + i * steps.q.units + j, x, n); }
    // The states: before the step, after it.
    INLINE V old(int64_t state) const {
        const float *before = steps.before(s, row, state);
        return before ? load(before + j, n) : V{};
    }
    INLINE V now(int64_t state) const { return load(steps.values(state) + flat * steps.q.units + j, n); }
    INLINE void put(int64_t state, V x) const { store(steps.values(state) + flat * steps.q.units + j, x, n); }
    // The cotangents of the gates, and of the carried state, bypassing the gates.
    INLINE void gate(int64_t i, V x) const { store(steps.q.d_gates + flat * wide + i * steps.q.units + j, x, n); }
    INLINE void carry(V x) const { store(steps.carry + row * steps.q.units + j, x, n); }
    // The i-th parameter by unit, and what is added to its cotangent's sum over the row's steps.
    INLINE V by_unit(int64_t i) const { return load(steps.q.by_unit + i * steps.q.units + j, n); }
    INLINE void to_unit(int64_t i, V x) const {
        float *sum = steps.q.d_by_unit + (row * BY_UNIT + i) * steps.q.units + j;
        store(sum, load(sum, n) + x, n);
    }
};

}  // namespace BPTT_ISA
}  // namespace bptt

// Normal numbers that are a function of a key and of where they are used: the same for any chunking, threads and machine.
//
// Threefry-2x32 with 20 rounds (Salmon et al. 2011): a step's key comes from the state's key and the step's number, and
// the counter is the row and half the unit. The Box-Muller transform turns its two words into the numbers of two
// neighbouring units. noise.py computes the same bits in torch, so noise.cpp is compiled without fused multiply-adds.
#pragma once
#include <cstdint>

namespace bptt {

// W: uint32_t or a vector of them.
template <class W> inline __attribute__((always_inline)) void threefry(W &a, W &b, W key0, W key1) {
    constexpr int TURNS[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
    const W keys[3] = {key0, key1, key0 ^ key1 ^ 0x1BD11BDAu};
    a += keys[0], b += keys[1];
    for (uint32_t group = 0; group < 5; ++group) {
        for (int turn : TURNS[group % 2]) a += b, b = ((b << turn) | (b >> (32 - turn))) ^ a;
        a += keys[(group + 1) % 3], b += keys[(group + 2) % 3] + (group + 1);
    }
}

constexpr int NOISY_ROWS = 12;  // rows whose numbers are drawn at once, at most

// The key of step number `clock`.
struct StepKey {
    uint32_t a, b;
    StepKey(int64_t key, int64_t clock) : a(uint32_t(clock)), b(uint32_t(uint64_t(clock) >> 32)) {
        threefry<uint32_t>(a, b, uint32_t(key), uint32_t(uint64_t(key) >> 32));
    }
};

}  // namespace bptt

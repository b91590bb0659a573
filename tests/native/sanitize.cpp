// The kernels against plain loops in double precision, every array on the heap and exactly as long as it must be, so
// that a sanitizer sees any step outside. Usage: sanitize LIBRARY
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../../src/bptt/nn/kernels/native/sequence.h"

using Doubles = std::vector<double>;
static std::mt19937 random_bits(1);
static int failures = 0, checks = 0;

static double uniform(double scale) { return std::uniform_real_distribution<double>(-scale, scale)(random_bits); }
static int64_t whole(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(random_bits); }
static bool chance(double p) { return std::bernoulli_distribution(p)(random_bits); }

// n floats, random within `scale`, or NaN for what must be written.
struct Floats {
    std::unique_ptr<float[]> at;
    int64_t n;
    explicit Floats(int64_t n, double scale = 0) : at(new float[size_t(n)]), n(n) {
        for (int64_t i = 0; i < n; ++i) at[i] = scale ? float(uniform(scale)) : NAN;
    }
};

struct Packed {
    float *at = nullptr;
    explicit Packed(int64_t floats) {
        if (posix_memalign(reinterpret_cast<void **>(&at), 64, size_t(floats) * sizeof(float))) abort();
    }
    ~Packed() { free(at); }
};

// ---- threads for the kernels, as an OpenMP runtime gives them: at most `given`

static unsigned given = 64;
static thread_local int thread_number = 0, thread_count = 1;

static void parallel(void (*body)(void *), void *data, unsigned threads, unsigned) {
    const unsigned n = threads < given ? threads : given;
    std::vector<std::thread> others;
    auto run = [=](unsigned i) { thread_number = int(i), thread_count = int(n), body(data); };
    for (unsigned i = 1; i < n; ++i) others.emplace_back(run, i);
    run(0);
    for (std::thread &other : others) other.join();
    thread_number = 0, thread_count = 1;
}
static int number() { return thread_number; }
static int count() { return thread_count; }

// ---- the library

template <class F> static F *entry(void *library, const char *name) {
    F *found = reinterpret_cast<F *>(dlsym(library, name));
    if (!found) printf("no %s: %s\n", name, dlerror()), exit(2);
    return found;
}
static decltype(bptt_use_openmp) *use_openmp;
static decltype(bptt_isa) *isa_name;
static decltype(bptt_packed) *packed_floats;
static decltype(bptt_forward) *forward;
static decltype(bptt_backward) *backward;
static decltype(bptt_product_packed) *product_packed;
static decltype(bptt_product) *product;

static void compare(const char *isa, const char *what, const float *got, const Doubles &want) {
    double worst = 0, largest = 0.05;  // what is less comes of numbers near 1, which were rounded
    for (double x : want) largest = std::fmax(largest, std::fabs(x));
    for (size_t i = 0; i < want.size(); ++i) {
        const double error = std::fabs(double(got[i]) - want[i]);
        if (!(error <= worst)) worst = error;
    }
    ++checks;
    if (worst <= 1e-5 * largest) return;
    ++failures, printf("%s: %s is wrong by %g of %g\n", isa, what, worst, largest);
}

// ---- one sequence

static double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Reference {
    const Sequence &q;
    explicit Reference(const Sequence &sequence) : q(sequence) {}
    int64_t H = q.units, G = q.cell == RNN ? 1 : q.cell == GRU ? 3 : 4, S = q.cell == RNN ? 1 : 4;
    int64_t t(int64_t s) const { return q.reverse ? q.steps - 1 - s : s; }
    int64_t rows(int64_t s) const { return q.sizes ? q.sizes[t(s)] : q.rows; }
    int64_t flat(int64_t s, int64_t b) const { return (q.offsets ? q.offsets[t(s)] : t(s) * q.rows) + b; }
    bool starts(int64_t s, int64_t b) const { return q.start && q.start[t(s) * q.rows + b]; }
    double weight(int64_t s, int64_t b) const {
        return !q.weight ? 1 : q.weight[q.weight_rows ? t(s) * q.rows + b : t(s)];
    }
    Doubles gates, outputs, cells, h, c, h_before, c_before, d_gates, dh, dc;

    void run_forward(int64_t N) {
        gates.assign(q.gates, q.gates + N * S * H), outputs.resize(N * H), cells.resize(N * H);
        h_before.resize(N * H), c_before.resize(N * H), h.resize(q.rows * H), c.resize(q.rows * H);
        for (int64_t i = 0; i < q.rows * H; ++i) h[i] = q.h0 ? q.h0[i] : 0, c[i] = q.c0 ? q.c0[i] : 0;
        for (int64_t s = 0; s < q.steps; ++s)
            for (int64_t b = 0; b < rows(s); ++b) step(flat(s, b), b, starts(s, b));
    }

    void step(int64_t row, int64_t b, bool starts) {
        double *g = &gates[row * S * H];
        Doubles sum(G * H);
        for (int64_t j = 0; j < H; ++j) {
            h_before[row * H + j] = starts ? 0 : h[b * H + j];
            c_before[row * H + j] = starts ? 0 : c[b * H + j];
        }
        for (int64_t i = 0; i < G * H; ++i)
            for (int64_t j = 0; j < H; ++j) sum[i] += q.recurrent[i * H + j] * h_before[row * H + j];
        for (int64_t j = 0; j < H; ++j) {
            double &out = h[b * H + j], &cell = c[b * H + j];
            if (q.cell == RNN) {
                const double x = g[j] + sum[j];
                out = g[j] = q.activation == TANH ? std::tanh(x) : q.activation == RELU ? std::fmax(x, 0) : x;
            } else if (q.cell == GRU) {
                const double r = sigmoid(g[j] + sum[j]), z = sigmoid(g[H + j] + sum[H + j]);
                const double inner = sum[2 * H + j] + (q.bias_n ? q.bias_n[j] : 0), n = std::tanh(g[2 * H + j] + r * inner);
                g[j] = r, g[H + j] = z, g[2 * H + j] = n, g[3 * H + j] = inner;
                out = (1 - z) * n + z * h_before[row * H + j];
            } else {
                const double i = sigmoid(g[j] + sum[j]), f = sigmoid(g[H + j] + sum[H + j]);
                const double n = std::tanh(g[2 * H + j] + sum[2 * H + j]), o = sigmoid(g[3 * H + j] + sum[3 * H + j]);
                g[j] = i, g[H + j] = f, g[2 * H + j] = n, g[3 * H + j] = o;
                cell = f * c_before[row * H + j] + i * n, out = o * std::tanh(cell);
            }
            outputs[row * H + j] = out, cells[row * H + j] = cell;
        }
    }

    void run_backward(int64_t N) {
        d_gates.assign(N * S * H, 0), dh.resize(q.rows * H), dc.resize(q.rows * H);
        for (int64_t i = 0; i < q.rows * H; ++i) dh[i] = q.d_hn ? q.d_hn[i] : 0, dc[i] = q.d_cn ? q.d_cn[i] : 0;
        for (int64_t s = q.steps - 1; s >= 0; --s)
            for (int64_t b = 0; b < rows(s); ++b) step_back(flat(s, b), b, starts(s, b), weight(s, b));
    }

    void step_back(int64_t row, int64_t b, bool starts, double w) {
        double *g = &gates[row * S * H], *d = &d_gates[row * S * H];
        Doubles past(H);
        for (int64_t j = 0; j < H; ++j) {
            const double out = w * dh[b * H + j] + (q.d_outputs ? q.d_outputs[row * H + j] : 0);
            const double old = h_before[row * H + j], h = outputs[row * H + j];
            if (q.cell == RNN) {
                d[j] = out * (q.activation == TANH ? 1 - h * h : q.activation == RELU ? h > 0 : 1);
            } else if (q.cell == GRU) {
                const double r = g[j], z = g[H + j], n = g[2 * H + j], dn = out * (1 - z) * (1 - n * n);
                d[j] = dn * g[3 * H + j] * r * (1 - r), d[H + j] = out * (old - n) * z * (1 - z);
                d[2 * H + j] = dn * r, d[3 * H + j] = dn, past[j] = out * z;
            } else {
                const double i = g[j], f = g[H + j], n = g[2 * H + j], o = g[3 * H + j], y = std::tanh(cells[row * H + j]);
                const double cell = w * dc[b * H + j] + out * o * (1 - y * y);
                d[j] = cell * n * i * (1 - i), d[H + j] = cell * c_before[row * H + j] * f * (1 - f);
                d[2 * H + j] = cell * i * (1 - n * n), d[3 * H + j] = out * y * o * (1 - o);
                dc[b * H + j] = starts ? 0 : cell * f;
            }
        }
        for (int64_t j = 0; j < H; ++j) {
            double sum = past[j];
            for (int64_t i = 0; i < G * H; ++i) sum += d[i] * q.recurrent[i * H + j];
            dh[b * H + j] = starts ? 0 : sum;
        }
    }
};

static void sequence(int isa, int32_t cell, int64_t T, int64_t B, int64_t H, int threads) {
    const int64_t G = cell == RNN ? 1 : cell == GRU ? 3 : 4, S = cell == RNN ? 1 : 4;
    std::vector<int64_t> sizes, offsets;
    int64_t N = T * B;
    const bool packed = chance(0.3);
    if (packed) {
        sizes.push_back(B), offsets.push_back(0), N = B;
        for (int64_t t = 1; t < T; ++t) {
            offsets.push_back(N), sizes.push_back(chance(0.5) ? sizes.back() : whole(1, sizes.back()));
            N += sizes.back();
        }
    }
    std::vector<uint8_t> start(size_t(T * B));
    for (uint8_t &x : start) x = chance(0.2);
    const bool by_row = chance(0.5);
    Floats weight(by_row ? T * B : T, 2), recurrent(G * H * H, 1 / std::sqrt(double(H))), bias(H, 1), gates(N * S * H, 1);
    for (int64_t i = 0; i < weight.n; ++i) weight.at[i] = chance(0.3) ? 0 : weight.at[i];
    Floats cells(N * H), outputs(N * H), h0(B * H, 1), c0(B * H, 1), hn(B * H), cn(B * H), d_outputs(N * H, 1);
    Floats d_hn(B * H, 1), d_cn(B * H, 1), d_gates(N * S * H), carry(B * H), d_h0(B * H), d_c0(B * H);
    const Packed scratch(packed_floats(isa, cell, H));
    auto maybe = [](float *p) { return chance(0.7) ? p : nullptr; };

    Sequence q{};
    q.cell = cell, q.activation = int32_t(whole(0, 2)), q.threads = threads, q.steps = T, q.rows = B, q.units = H;
    q.reverse = chance(0.3);
    if (packed) q.sizes = sizes.data(), q.offsets = offsets.data();
    if (!packed && chance(0.5)) q.start = start.data();  // the keywords are for padded sequences, forwards
    if (!packed && chance(0.5)) q.weight = weight.at.get(), q.weight_rows = by_row;
    if (q.start || q.weight) q.reverse = 0;
    q.recurrent = recurrent.at.get(), q.packed = scratch.at, q.gates = gates.at.get();
    q.bias_n = cell == GRU ? maybe(bias.at.get()) : nullptr;
    q.outputs = cell == RNN ? q.gates : outputs.at.get(), q.cells = cell == LSTM ? cells.at.get() : nullptr;
    q.h0 = maybe(h0.at.get()), q.c0 = cell == LSTM ? maybe(c0.at.get()) : nullptr;
    q.hn = hn.at.get(), q.cn = cell == LSTM ? cn.at.get() : nullptr;
    Reference want{q};
    want.run_forward(N);
    forward(isa, &q);
    const char *name = isa_name(isa);
    compare(name, "gates", gates.at.get(), want.gates);
    compare(name, "outputs", q.outputs, want.outputs);
    compare(name, "hn", q.hn, want.h);
    if (cell == LSTM) compare(name, "cells", q.cells, want.cells), compare(name, "cn", q.cn, want.c);

    q.hn = q.cn = nullptr;
    q.d_outputs = maybe(d_outputs.at.get()), q.d_hn = maybe(d_hn.at.get()), q.d_gates = d_gates.at.get();
    q.d_cn = cell == LSTM ? maybe(d_cn.at.get()) : nullptr, q.carry = cell == RNN ? nullptr : carry.at.get();
    q.d_h0 = maybe(d_h0.at.get()), q.d_c0 = cell == LSTM ? maybe(d_c0.at.get()) : nullptr;
    want.run_backward(N);
    backward(isa, &q);
    compare(name, "d_gates", q.d_gates, want.d_gates);
    if (q.d_h0) compare(name, "d_h0", q.d_h0, want.dh);
    if (q.d_c0) compare(name, "d_c0", q.d_c0, want.dc);
}

// ---- one product

static void multiplication(int isa, int64_t m, int64_t n, int64_t k, int threads) {
    Product p{};
    p.threads = threads, p.m = m, p.n = n, p.k = k, p.n2 = n == 0 || chance(0.5) ? whole(1, 40) : 0, p.split = whole(0, k);
    p.a_transposed = chance(0.5), p.b_transposed = chance(0.5), p.add = chance(0.3);
    const int64_t a_rows = p.a_transposed ? k : m, a_wide = p.a_transposed ? m : k;
    const int64_t b_rows = p.b_transposed ? n : k, b_wide = p.b_transposed ? k : n;
    p.lda = a_wide + whole(0, 3), p.ldb = b_wide + whole(0, 3), p.ldc = n + whole(0, 3);
    p.ld2 = p.n2, p.ldc2 = p.n2 + whole(0, 3);
    Floats a((a_rows - 1) * p.lda + a_wide, 1), b(n ? (b_rows - 1) * p.ldb + b_wide : 0, 1), bias(n, 1), sums(m);
    Floats c(n ? (m - 1) * p.ldc + n : 0, 1), c2(p.n2 ? (m - 1) * p.ldc2 + p.n2 : 0, 1);
    Floats first2(p.split * p.n2, 1), then2((k - p.split) * p.n2, 1);
    std::vector<uint8_t> skip(static_cast<size_t>(k));
    for (uint8_t &x : skip) x = chance(0.3);
    p.a = a.at.get(), p.b = n ? b.at.get() : nullptr, p.c = n ? c.at.get() : nullptr, p.c2 = c2.at.get();
    p.bias = n && !p.add && chance(0.5) ? bias.at.get() : nullptr;
    p.sums = p.a_transposed && chance(0.5) ? sums.at.get() : nullptr;
    p.first2 = chance(0.7) ? first2.at.get() : nullptr, p.then2 = chance(0.7) ? then2.at.get() : nullptr;
    p.skip2 = chance(0.5) ? skip.data() : nullptr;
    const Packed scratch(product_packed(isa, &p));
    p.packed = scratch.at;
    Doubles want(c.at.get(), c.at.get() + c.n), want2(c2.at.get(), c2.at.get() + c2.n), want_sums(m);
    auto a_at = [&](int64_t i, int64_t l) { return double(p.a[p.a_transposed ? l * p.lda + i : i * p.lda + l]); };
    auto b2_at = [&](int64_t l, int64_t j) {
        const float *part = l < p.split ? p.first2 : p.then2;
        return !part || (p.skip2 && p.skip2[l]) ? 0. : part[(l < p.split ? l : l - p.split) * p.n2 + j];
    };
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t l = 0; l < k; ++l) want_sums[i] += a_at(i, l);
        for (int64_t j = 0; j < n; ++j) {
            double &sum = want[i * p.ldc + j] = p.add ? p.c[i * p.ldc + j] : p.bias ? p.bias[j] : 0;
            for (int64_t l = 0; l < k; ++l) sum += a_at(i, l) * p.b[p.b_transposed ? j * p.ldb + l : l * p.ldb + j];
        }
        for (int64_t j = 0; j < p.n2; ++j) {
            double &sum = want2[i * p.ldc2 + j] = p.add ? p.c2[i * p.ldc2 + j] : 0;
            for (int64_t l = 0; l < k; ++l) sum += a_at(i, l) * b2_at(l, j);
        }
    }
    product(isa, &p);
    compare(isa_name(isa), "product", c.at.get(), want);
    compare(isa_name(isa), "second product", c2.at.get(), want2);
    if (p.sums) compare(isa_name(isa), "sums", p.sums, want_sums);
}

int main(int, char **argv) {
    void *library = dlopen(argv[1], RTLD_NOW);
    if (!library) return printf("%s\n", dlerror()), 2;
    use_openmp = entry<decltype(bptt_use_openmp)>(library, "bptt_use_openmp");
    isa_name = entry<decltype(bptt_isa)>(library, "bptt_isa");
    packed_floats = entry<decltype(bptt_packed)>(library, "bptt_packed");
    forward = entry<decltype(bptt_forward)>(library, "bptt_forward");
    backward = entry<decltype(bptt_backward)>(library, "bptt_backward");
    product_packed = entry<decltype(bptt_product_packed)>(library, "bptt_product_packed");
    product = entry<decltype(bptt_product)>(library, "bptt_product");
    for (int isa = 0; isa_name(isa); ++isa) {
        for (const int threads : {1, 2, 3, 5}) {  // five asked for, three given
            use_openmp(threads == 1 ? nullptr : parallel, number, count);
            given = threads == 5 ? 3 : 64;
            for (int32_t cell : {RNN, GRU, LSTM}) {
                for (const int64_t H : {1, 2, 7, 15, 16, 17, 31, 33, 64, 67})
                    for (const int64_t B : {1, 2, 5, 9, 13}) sequence(isa, cell, whole(1, 4), B, H, threads);
                sequence(isa, cell, 2, 200, 9, threads), sequence(isa, cell, 3, 97, 33, threads);
                sequence(isa, cell, 1, 1, 1, threads), sequence(isa, cell, 1, 1, 129, threads);
            }
            for (const int64_t m : {1, 3, 12, 13, 97})
                for (const int64_t n : {0, 1, 15, 32, 33})
                    for (const int64_t k : {1, 16, 255, 257, 520}) multiplication(isa, m, n, k, threads);
        }
        printf("%s: %d checks so far, %d wrong\n", isa_name(isa), checks, failures);
    }
    return failures ? 1 : 0;
}

/* The attended sum of an ARL block, F + s + alpha * softmax(F) * s, with or without a ReLU after it, and its gradients,
   in bfloat16, or in float32 where FLOAT32 is defined.

   All arrays are [images][positions][channels], channels a multiple of LANES; the softmax is over positions. Numbers
   are computed in float32 and rounded once. Each thread takes one image's LANES channels at a time: what it reads
   twice or three times is still in its cache then, and what it reads for the first time is asked for in time. The
   gradients find out anew where the ReLU put out 0. nets/fast/kernel.py sets LANES, compiles and loads this. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define AHEAD 16 /* positions that memory is asked for before they are worked on */
#define LINE 64  /* bytes that it gives at a time */

#ifdef FLOAT32
typedef float value;

static inline float widen(value x) { return x; }

static inline value narrow(float x) { return x; }
#else
typedef uint16_t value;

static inline float widen(value x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

static inline value narrow(float x) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (value)rounded;
}
#endif

static inline float exponential(float x) { /* of x <= 0, to 1e-7 of itself; 2^k * 2^f with |f| <= 1/2 */
    const float log2_e = 1.44269504f, whole = 12582912.f; /* 1.5 * 2^23: a number added to it loses its fraction */
    x = x < -87.f ? -87.f : x;
    float k = __builtin_fmaf(x, log2_e, whole);
    float f = __builtin_fmaf(x, log2_e, whole - k);
    float sum = 0.00132647273f;
    sum = __builtin_fmaf(sum, f, 0.00967151299f);
    sum = __builtin_fmaf(sum, f, 0.0555073358f);
    sum = __builtin_fmaf(sum, f, 0.240222424f);
    sum = __builtin_fmaf(sum, f, 0.693147004f);
    sum = __builtin_fmaf(sum, f, 1.f);
    uint32_t bits, exponent;
    memcpy(&bits, &sum, 4);
    memcpy(&exponent, &k, 4);
    bits += exponent << 23; /* its lowest bits are k */
    memcpy(&sum, &bits, 4);
    return sum;
}

static inline float attended(float f, float s, float attention) { return __builtin_fmaf(s, 1 + attention, f); }

static inline void ask_for(const value *channels) {
    for (int i = 0; i < LANES; i += LINE / sizeof(value)) __builtin_prefetch(channels + i);
}

/* highest, inverse: [images][channels], for the backward pass: softmax = exp(F - highest) * inverse. */
void attended_sum(const value *restrict residual, const value *restrict shortcut, value *restrict out,
                  float *restrict highest, float *restrict inverse, float alpha, int relu, long images, long positions,
                  long channels) {
    long blocks = channels / LANES;
    float least = relu ? 0 : NAN; /* nothing is below NaN */
#pragma omp parallel for schedule(static)
    for (long task = 0; task < images * blocks; task++) {
        long first = task % blocks * LANES, of_image = task / blocks * channels + first;
        long start = task / blocks * positions * channels + first;
        float high[LANES], sum[LANES], scale[LANES];
        for (int i = 0; i < LANES; i++) {
            high[i] = widen(residual[start + i]);
            sum[i] = 0;
        }
        for (long p = 1; p < positions; p++) {
            ask_for(residual + start + (p + AHEAD) * channels);
            for (int i = 0; i < LANES; i++) {
                float f = widen(residual[start + p * channels + i]);
                high[i] = f > high[i] ? f : high[i];
            }
        }
        for (long p = 0; p < positions; p++) {
            ask_for(shortcut + start + p * channels);
            for (int i = 0; i < LANES; i++) sum[i] += exponential(widen(residual[start + p * channels + i]) - high[i]);
        }
        for (int i = 0; i < LANES; i++) {
            highest[of_image + i] = high[i];
            inverse[of_image + i] = 1 / sum[i];
            scale[i] = alpha * inverse[of_image + i];
        }
        for (long p = 0; p < positions; p++)
            for (int i = 0; i < LANES; i++) {
                long at = start + p * channels + i;
                float f = widen(residual[at]), s = widen(shortcut[at]);
                float y = attended(f, s, scale[i] * exponential(f - high[i]));
                out[at] = narrow(y < least ? least : y);
            }
    }
}

/* of_alpha: [images][channels], to be summed. */
void attended_sum_gradients(const value *restrict residual, const value *restrict shortcut,
                            const value *restrict gradient, const float *restrict highest,
                            const float *restrict inverse, float alpha, int relu, value *restrict of_residual,
                            value *restrict of_shortcut, float *restrict of_alpha, long images, long positions,
                            long channels) {
    long blocks = channels / LANES;
    float least = relu ? 0 : NAN;
#pragma omp parallel for schedule(static)
    for (long task = 0; task < images * blocks; task++) {
        long first = task % blocks * LANES, of_image = task / blocks * channels + first;
        long start = task / blocks * positions * channels + first;
        float high[LANES], scale[LANES], sum[LANES];
        for (int i = 0; i < LANES; i++) {
            high[i] = highest[of_image + i];
            scale[i] = alpha * inverse[of_image + i];
            sum[i] = 0;
        }
        for (long p = 0; p < positions; p++) {
            ask_for(residual + start + (p + AHEAD) * channels);
            ask_for(shortcut + start + (p + AHEAD) * channels);
            ask_for(gradient + start + (p + AHEAD) * channels);
            for (int i = 0; i < LANES; i++) {
                long at = start + p * channels + i;
                float f = widen(residual[at]), s = widen(shortcut[at]), g = widen(gradient[at]);
                float power = exponential(f - high[i]);
                g = attended(f, s, scale[i] * power) <= least ? 0 : g;
                sum[i] += power * g * s;
            }
        }
        for (int i = 0; i < LANES; i++) of_alpha[of_image + i] = sum[i] *= inverse[of_image + i];
        for (long p = 0; p < positions; p++)
            for (int i = 0; i < LANES; i++) {
                long at = start + p * channels + i;
                float f = widen(residual[at]), s = widen(shortcut[at]), g = widen(gradient[at]);
                float attention = scale[i] * exponential(f - high[i]);
                g = attended(f, s, attention) <= least ? 0 : g;
                of_shortcut[at] = narrow(g + attention * g);
                of_residual[at] = narrow(g + attention * (g * s - sum[i]));
            }
    }
}

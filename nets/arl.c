/* The attended sum of an ARL block, F + s + alpha * softmax(F) * s, and its gradients, in bfloat16.

   All arrays are [images][positions][channels], channels a multiple of LANES; the softmax is over positions. Numbers
   are computed in float32 and rounded once. Each thread takes one image's LANES channels at a time: what it reads
   twice or three times is still in its cache then. nets/kernel.py sets LANES,
   compiles and loads this. */
#include <stdint.h>
#include <string.h>

typedef uint16_t bf16;

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static inline bf16 narrow(float value) { /* to the nearest, ties to even; NaN stays NaN */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : (bf16)rounded;
}

static inline float exponential(float x) { /* of x <= 0, to about 1e-7; 2^k * e^f with |f| <= ln(2) / 2 */
    x = x < -87.f ? -87.f : x;
    float k = __builtin_rintf(x * 1.44269504f);
    float f = __builtin_fmaf(k, -0.693145752f, x); /* ln(2) in two parts */
    f = __builtin_fmaf(k, -1.42860677e-6f, f);
    float sum = 1.f / 720;
    sum = __builtin_fmaf(sum, f, 1.f / 120);
    sum = __builtin_fmaf(sum, f, 1.f / 24);
    sum = __builtin_fmaf(sum, f, 1.f / 6);
    sum = __builtin_fmaf(sum, f, 0.5f);
    sum = __builtin_fmaf(sum, f, 1.f);
    sum = __builtin_fmaf(sum, f, 1.f);
    int32_t bits = ((int32_t)k + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return sum * power;
}

/* highest, inverse: [images][channels], for the backward pass: softmax = exp(F - highest) * inverse. */
void attended_sum(const bf16 *residual, const bf16 *shortcut, bf16 *out, float *highest, float *inverse, float alpha,
                  long images, long positions, long channels) {
    long blocks = channels / LANES;
#pragma omp parallel for schedule(static)
    for (long task = 0; task < images * blocks; task++) {
        long first = task % blocks * LANES, of_image = task / blocks * channels + first;
        long start = task / blocks * positions * channels + first;
        float high[LANES], sum[LANES];
        for (int i = 0; i < LANES; i++) {
            high[i] = widen(residual[start + i]);
            sum[i] = 0;
        }
        for (long p = 1; p < positions; p++)
            for (int i = 0; i < LANES; i++) {
                float f = widen(residual[start + p * channels + i]);
                high[i] = f > high[i] ? f : high[i];
            }
        for (long p = 0; p < positions; p++)
            for (int i = 0; i < LANES; i++) sum[i] += exponential(widen(residual[start + p * channels + i]) - high[i]);
        for (int i = 0; i < LANES; i++) {
            highest[of_image + i] = high[i];
            inverse[of_image + i] = 1 / sum[i];
            sum[i] = alpha / sum[i];
        }
        for (long p = 0; p < positions; p++)
            for (int i = 0; i < LANES; i++) {
                long at = start + p * channels + i;
                float f = widen(residual[at]), s = widen(shortcut[at]);
                out[at] = narrow(f + s * (1 + sum[i] * exponential(f - high[i])));
            }
    }
}

/* of_alpha: [images][channels], to be summed. */
void attended_sum_gradients(const bf16 *residual, const bf16 *shortcut, const bf16 *gradient, const float *highest,
                            const float *inverse, float alpha, bf16 *of_residual, bf16 *of_shortcut, float *of_alpha,
                            long images, long positions, long channels) {
    long blocks = channels / LANES;
#pragma omp parallel for schedule(static)
    for (long task = 0; task < images * blocks; task++) {
        long first = task % blocks * LANES, of_image = task / blocks * channels + first;
        long start = task / blocks * positions * channels + first;
        float high[LANES], scale[LANES], sum[LANES];
        for (int i = 0; i < LANES; i++) {
            high[i] = highest[of_image + i];
            scale[i] = inverse[of_image + i];
            sum[i] = 0;
        }
        for (long p = 0; p < positions; p++)
            for (int i = 0; i < LANES; i++) {
                long at = start + p * channels + i;
                sum[i] += exponential(widen(residual[at]) - high[i]) * widen(gradient[at]) * widen(shortcut[at]);
            }
        for (int i = 0; i < LANES; i++) of_alpha[of_image + i] = sum[i] *= scale[i];
        for (long p = 0; p < positions; p++)
            for (int i = 0; i < LANES; i++) {
                long at = start + p * channels + i;
                float g = widen(gradient[at]);
                float attention = alpha * scale[i] * exponential(widen(residual[at]) - high[i]);
                of_shortcut[at] = narrow(g + attention * g);
                of_residual[at] = narrow(g + attention * (g * widen(shortcut[at]) - sum[i]));
            }
    }
}

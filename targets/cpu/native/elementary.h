// Elementary functions of vectors of floats: tanh to about 2 ulp, the activations to a few.
#pragma once
#include "vector.h"

#if defined(__AVX512F__)
static inline Vec where_less(Vec a, Vec b, Vec then, Vec otherwise) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), otherwise, then);
}
static inline Vec magnitude(Vec a) { return _mm512_abs_ps(a); }
static inline Vec with_sign_of(Vec a, Vec sign) {
    return _mm512_or_ps(_mm512_andnot_ps(all(-0.0f), a), _mm512_and_ps(all(-0.0f), sign));
}
#else
static inline Vec where_less(Vec a, Vec b, Vec then, Vec otherwise) {
    return _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps(a, b, _CMP_LT_OQ));
}
static inline Vec magnitude(Vec a) { return _mm256_andnot_ps(all(-0.0f), a); }
static inline Vec with_sign_of(Vec a, Vec sign) {
    return _mm256_or_ps(_mm256_andnot_ps(all(-0.0f), a), _mm256_and_ps(all(-0.0f), sign));
}
#endif

// x / (1 + e^-y). A NaN in x stays one.
static inline Vec times_sigmoid(Vec x, Vec y) { return x / (all(1.0f) + exponential(zero() - y)); }

static inline Vec silu(Vec x) { return times_sigmoid(x, x); }

// x (1 + tanh(u)) / 2 = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
static inline Vec gelu_tanh(Vec x) {
    return times_sigmoid(x, all(1.5957691216057308f) * fma(all(0.044715f) * x * x, x, x));
}

// x erfc(-x / sqrt 2) / 2. erfc(z) = e^(-z^2) t P(t), t = 1 / (1 + z / 2): P is a least-maximum fit for z up to 10, relative
// error 4e-8; beyond |x| = 14.2 it is 0 in float32.
static inline Vec gelu(Vec x) {
    Vec bounded = vmax(all(-14.2f), vmin(all(14.2f), x));  // in this order NaN stays
    Vec z = magnitude(bounded) * all(0.70710678118654752f);
    Vec t = all(1.0f) / fma(z, all(0.5f), all(1.0f));
    Vec p = all(-5.906921625137329e-2f);
    p = fma(p, t, all(2.845761775970459e-1f));
    p = fma(p, t, all(-4.8720231652259827e-1f));
    p = fma(p, t, all(2.7806979417800903e-1f));
    p = fma(p, t, all(-2.662738598883152e-2f));
    p = fma(p, t, all(2.026875615119934e-1f));
    p = fma(p, t, all(2.4310359358787537e-1f));
    p = fma(p, t, all(2.823753356933594e-1f));
    p = fma(p, t, all(2.8208640217781067e-1f));
    Vec tail = all(0.5f) * bounded * t * p * exponential(zero() - z * z);
    return where_less(x, zero(), tail, x - tail);
}

static inline Vec relu(Vec x) { return where_less(x, zero(), zero(), x); }

// Near zero an odd polynomial (Cephes' coefficients), where 1 - 2 / (e^2x + 1) would lose digits.
static inline Vec hyperbolic_tangent(Vec x) {
    Vec size = magnitude(x), square = x * x;
    Vec p = all(-5.70498872745e-3f);
    p = fma(p, square, all(2.06390887954e-2f));
    p = fma(p, square, all(-5.37397155531e-2f));
    p = fma(p, square, all(1.33314422036e-1f));
    p = fma(p, square, all(-3.33332819422e-1f));
    Vec near = fma(p * square, x, x);
    Vec far = all(1.0f) - all(2.0f) / (exponential(size + size) + all(1.0f));
    return where_less(all(0.625f), size, with_sign_of(far, x), near);  // NaN is not less: it stays
}

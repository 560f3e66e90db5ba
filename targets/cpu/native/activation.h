// The activations by name, for kernels that end or begin with one.
#pragma once
#include "elementary.h"

enum class Activation { silu, gelu, gelu_tanh, relu, relu2 };

template <Activation kind> static inline Vec activate(Vec x) {
    if constexpr (kind == Activation::silu) return silu(x);
    else if constexpr (kind == Activation::gelu) return gelu(x);
    else if constexpr (kind == Activation::gelu_tanh) return gelu_tanh(x);
    else if constexpr (kind == Activation::relu) return relu(x);
    else return relu(x) * relu(x);
}

template <Activation value_> struct ActivationKind {
    static constexpr Activation value = value_;
};

// body(kind) with the kind of that index as a type, so that its loops know it.
template <class Body> static inline void for_activation(int64_t index, Body body) {
    switch (static_cast<Activation>(index)) {
        case Activation::silu: return body(ActivationKind<Activation::silu>{});
        case Activation::gelu: return body(ActivationKind<Activation::gelu>{});
        case Activation::gelu_tanh: return body(ActivationKind<Activation::gelu_tanh>{});
        case Activation::relu: return body(ActivationKind<Activation::relu>{});
        case Activation::relu2: return body(ActivationKind<Activation::relu2>{});
    }
}

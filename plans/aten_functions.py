"""The ATen functions that a plan may call, where no function of this project's own does what a model needs.

All are pure: the result depends on the arguments alone, nothing is changed in place, nothing is drawn at random, nothing is
read or written outside. Every one works row by row on at least one of its dimensions (`passes/rowwise`).
"""

from __future__ import annotations

_TARGETS = """
_log_softmax.default _softmax.default _to_copy.default _unsafe_view.default abs.default acos.default acosh.default
add.Tensor add.Scalar addcdiv.default addcmul.default addmm.default all.default all.dim all.dims amax.default
amin.default any.default any.dim any.dims arange.default arange.start arange.start_step argmax.default
argmin.default argsort.default argsort.stable asin.default asinh.default atan.default atan2.default atanh.default
baddbmm.default bitwise_and.Tensor bitwise_and.Scalar bitwise_and.Scalar_Tensor bitwise_not.default
bitwise_or.Tensor bitwise_or.Scalar bitwise_or.Scalar_Tensor bitwise_xor.Tensor bitwise_xor.Scalar
bitwise_xor.Scalar_Tensor bmm.default cat.default ceil.default chunk.default clamp.default clamp.Tensor
clamp_max.default clamp_max.Tensor clamp_min.default clamp_min.Tensor clone.default constant_pad_nd.default
conv1d.default conv1d.padding convolution.default copysign.Tensor copysign.Scalar cos.default cosh.default
cumprod.default cumsum.default div.Tensor div.Scalar div.Tensor_mode div.Scalar_mode elu.default embedding.default
eq.Tensor eq.Scalar erf.default erfc.default exp.default exp2.default expand.default expm1.default eye.default eye.m
flip.default floor.default floor_divide.default floor_divide.Scalar fmod.Tensor fmod.Scalar full.default
full_like.default gather.default ge.Tensor ge.Scalar gelu.default glu.default group_norm.default gt.Tensor gt.Scalar
hardsigmoid.default hardswish.default hardtanh.default index.Tensor index_select.default isfinite.default
isinf.default isnan.default layer_norm.default le.Tensor le.Scalar leaky_relu.default lerp.Scalar lerp.Tensor
linalg_vector_norm.default linear.default linspace.default log.default log10.default log1p.default log2.default
log_sigmoid_forward.default log_softmax.int logcumsumexp.default logical_and.default logical_not.default
logical_or.default logical_xor.default logit.default logsumexp.default lt.Tensor lt.Scalar masked_fill.Scalar
masked_fill.Tensor matmul.default max.other max.default max.dim maximum.default mean.default mean.dim median.default
median.dim min.other min.default min.dim minimum.default mish.default mm.default mul.Tensor mul.Scalar
nan_to_num.default native_layer_norm.default ne.Tensor ne.Scalar neg.default new_full.default new_ones.default
new_zeros.default norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype ones.default
ones_like.default permute.default pow.Tensor_Tensor pow.Tensor_Scalar pow.Scalar prod.default prod.dim_int
reciprocal.default relu.default remainder.Tensor remainder.Scalar remainder.Scalar_Tensor repeat.default
repeat_interleave.self_int reshape.default rms_norm.default roll.default round.default round.decimals rsqrt.default
rsub.Tensor rsub.Scalar scalar_tensor.default scatter.value scatter.src scatter.reduce scatter.value_reduce
scatter_add.default scatter_reduce.two select.int selu.default sgn.default sigmoid.default sign.default silu.default
sin.default sinh.default slice.Tensor softmax.int softplus.default sort.default sort.stable special_expit.default
split.Tensor split.sizes split_with_sizes.default sqrt.default square.default squeeze.default squeeze.dim
squeeze.dims stack.default std.default std.dim std.correction std_mean.default std_mean.dim std_mean.correction
sub.Tensor sub.Scalar sum.dim_IntList sum.default t.default tan.default tanh.default tensor_split.sections
tensor_split.indices threshold.default topk.default transpose.int tril.default triu.default trunc.default
type_as.default unbind.int unsqueeze.default var.default var.dim var.correction var_mean.default var_mean.dim
var_mean.correction view.default where.self xlogy.Tensor xlogy.Scalar_Other xlogy.Scalar_Self zeros.default
zeros_like.default
"""

ATEN_FUNCTIONS: dict[str, str] = {f"aten.{target.lower()}": f"aten.{target}" for target in _TARGETS.split()}
"""Name in a plan (lower case) -> ATen operation with its overload."""


def function_of(target: str) -> str | None:
    """The plan's name for an ATen operation such as "aten.add.Tensor"; None if plans may not call it."""
    name = target.lower()
    return name if ATEN_FUNCTIONS.get(name) == target else None

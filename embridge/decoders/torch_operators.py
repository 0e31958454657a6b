"""The operators that a torch.export program may call: pure functions of tensors.

An operator is on the list where (1) it computes its result from tensors and numbers alone: it reads and writes no file, calls no
other function or library, has no random numbers, and returns no uninitialized memory; (2) it checks the bounds of every index.
Overloads are allowed whose schema takes or returns a tensor, and apart from tensors only numbers, dtypes,
layouts, devices, memory formats and names of a mode (``"tanh"``, ``"floor"``): TorchScript's overloads on strings, lists and
dictionaries share the names.
"""

from __future__ import annotations

import re

import torch

_UNARY = (
    "abs acos acosh alias angle asin asinh atan atanh bitwise_not ceil celu clone contiguous cos cosh deg2rad detach digamma "
    "elu erf erfc erfinv exp exp2 expm1 fix floor frac gelu glu hardshrink hardsigmoid hardswish hardtanh i0 isfinite isinf "
    "isnan leaky_relu lgamma log log10 log1p log2 log_sigmoid logical_not logit mish nan_to_num neg negative ones_like "
    "positive prelu rad2deg reciprocal relu relu6 round rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus "
    "softshrink special_erf special_expit sqrt square tan tanh threshold trunc zeros_like"
)
_BINARY = (
    "add addcdiv addcmul atan2 bitwise_and bitwise_or bitwise_xor clamp clamp_max clamp_min clip copysign div divide eq equal "
    "floor_divide fmax fmin fmod ge greater greater_equal gt heaviside hypot le lerp less less_equal logaddexp logaddexp2 "
    "logical_and logical_or logical_xor lt masked_fill maximum minimum mul multiply ne not_equal pow remainder rsub sub "
    "subtract true_divide where xlogy"
)
_PRODUCTS = (
    "addbmm addmm addmv addr baddbmm bilinear bmm cdist conv1d conv2d conv3d convolution cosine_similarity cross dot einsum "
    "inner linalg_cross linalg_matrix_norm linalg_norm linalg_vecdot linalg_vector_norm linear matmul mm mv norm outer "
    "pairwise_distance scaled_dot_product_attention tensordot vdot"
)
_REDUCTIONS = (
    "_log_softmax _softmax all amax amin aminmax any argmax argmin argsort count_nonzero cummax cummin cumprod cumsum "
    "log_softmax logcumsumexp logsumexp max mean median min mode nanmean nanmedian nansum prod softmax sort std std_mean sum "
    "topk var var_mean"
)
_NORMS = (
    "_adaptive_avg_pool2d _native_batch_norm_legit_no_training adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d "
    "avg_pool1d avg_pool2d batch_norm dropout feature_dropout group_norm instance_norm layer_norm max_pool1d "
    "max_pool1d_with_indices max_pool2d max_pool2d_with_indices native_group_norm native_layer_norm rms_norm"
)
_SHAPES = (
    "_assert_scalar _assert_tensor_metadata _reshape_alias _shape_as_tensor _to_copy _unsafe_view arange as_strided "
    "atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to cat chunk concat concatenate constant_pad_nd copy diag "
    "diag_embed diagonal dstack embedding expand expand_as eye fill flatten flip full full_like gather hstack index index_add "
    "index_copy index_put index_select item lift_fresh_copy linspace logspace mT masked_scatter meshgrid moveaxis movedim "
    "narrow new_full new_ones new_zeros numel numpy_T one_hot ones pad permute pixel_shuffle reflection_pad1d repeat "
    "repeat_interleave replication_pad1d reshape reshape_as roll rot90 scalar_tensor scatter scatter_add scatter_reduce "
    "select select_scatter slice slice_scatter split split_with_sizes squeeze stack swapaxes swapdims sym_constrain_range "
    "sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size sym_storage_offset sym_stride t take_along_dim "
    "tensor_split tile to transpose tril triu type_as unbind unflatten unfold unsqueeze view view_as vstack zeros"
)

TENSOR_OPERATORS = frozenset(" ".join((_UNARY, _BINARY, _PRODUCTS, _REDUCTIONS, _NORMS, _SHAPES)).split())
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_NUMBERS = re.compile(
    r"torch\.sym_(int|float|max|min|not|ite|sqrt|sum)|"
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|neg|abs|getitem|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
_WORDS = re.compile(r"\w+")
_PLAIN = {"Tensor", "number", "int", "float", "bool", "str", "SymInt", "Device", "ScalarType", "Layout", "MemoryFormat"}
_PLAIN |= {"Optional", "List", "NoneType"}
_ON_SIZES = ("_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
_ALWAYS_OFF = ("training", "train", "dropout_p")
"""Arguments that would make a result random, or dependent on other rows."""


def is_tensor_operator(target: str) -> bool:
    """True for an operator that a program may call without being listed in `trusted`.

    ``torch.ops.aten.NAME.OVERLOAD`` with a NAME on the list, its in-place form included; arithmetic on sizes.
    """
    if _NUMBERS.fullmatch(target):
        return True
    found = _ATEN.fullmatch(target)
    if found is None or not (found[1] in TENSOR_OPERATORS or found[1].removesuffix("_") in TENSOR_OPERATORS):
        return False
    overload = getattr(getattr(torch.ops.aten, found[1], None), found[2], None)
    return isinstance(overload, torch._ops.OpOverload) and (found[1] in _ON_SIZES or _is_on_tensors(overload._schema))


def _is_on_tensors(schema: torch.FunctionSchema) -> bool:
    arguments = [set(_WORDS.findall(str(argument.type))) for argument in schema.arguments]
    results = [set(_WORDS.findall(str(result.type))) for result in schema.returns]
    is_plain = all(words <= _PLAIN for words in (*arguments, *results)) and not any(a.is_out for a in schema.arguments)
    return is_plain and any("Tensor" in words for words in (*arguments, *results))


def is_switched_on(name: str, value: object) -> bool:
    """True for an argument that must be off while a program decodes, but is on."""
    return name in _ALWAYS_OFF and value not in (False, 0, 0.0)

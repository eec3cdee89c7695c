"""Which tensor operations are products, which only move data, and how the small ones are counted."""

from __future__ import annotations

from tracking.energy_model.layers import Kind


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


MATMULS = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "addmm": 1, "baddbmm": 1, "addmv": 1, "_int_mm": 0, "_scaled_mm": 0}
"""Products by name, with the position of their first factor."""

CONVOLUTIONS = frozenset({"convolution", "_convolution"})
OPAQUE = _names("""linear matmul einsum mkldnn_rnn_layer _cudnn_rnn miopen_rnn _native_multi_head_attention _transformer_encoder_layer_fwd
    _grouped_mm""")
EMBEDDINGS = frozenset({"embedding", "embedding_bag", "_embedding_bag"})

FACTORIES = _names("""empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_zeros new_ones new_full
    new_empty_strided""")
"""They take only the shape of their argument."""

LAYOUT = FACTORIES | _names("""clone copy copy_ _to_copy cat stack constant_pad_nd index index_select gather index_put index_put_ repeat
    roll flip detach detach_ alias lift_fresh _unsafe_view _reshape_alias select_scatter slice_scatter pixel_shuffle contiguous fill_ zero_
    _local_scalar_dense unfold im2col split_with_sizes_copy expand_copy permute_copy view_copy unbind_copy""")
"""They move or reinterpret data; not billed, because a compiler fuses them with what comes before or after."""

NORMS = _names("""native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
    _batch_norm_no_update cudnn_batch_norm miopen_batch_norm native_layer_norm native_group_norm _fused_rms_norm""")

ACTIVATIONS = _names("""relu relu_ gelu silu silu_ elu elu_ celu selu hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_
    leaky_relu leaky_relu_ sigmoid sigmoid_ tanh tanh_ softplus mish mish_ threshold threshold_ prelu _prelu_kernel glu log_sigmoid_forward
    native_dropout""")

SOFTMAXES = frozenset({"_softmax", "_log_softmax", "_safe_softmax"})

LINEAR = _names("add add_ sub sub_ neg neg_ sum mean")
"""Element-wise operations whose derivative needs no stored value."""

LOGIC = _names("""relu relu_ threshold threshold_ hardtanh hardtanh_ leaky_relu leaky_relu_ clamp clamp_ clamp_min clamp_min_ clamp_max
    clamp_max_ sign sign_ where abs neg maximum minimum max min amax amin masked_fill masked_fill_ round floor max_pool2d_with_indices
    max_pool3d_with_indices max_pool1d_with_indices adaptive_max_pool2d""")
"""Comparisons, signs and selections; everything else is a floating-point operation."""


def is_product(name: str) -> bool:
    """Whether it is a product: one that torch's own counter of floating-point operations knows, or one that hides products."""
    from torch.utils.flop_counter import flop_registry

    return name in OPAQUE or any(packet.__name__ == name for packet in flop_registry)


def kind_of(name: str, module: str, *, leaf: bool) -> Kind:
    """Kind of a small operation, from its name and, for a module without children, the class that runs it."""
    module = module.lower()
    if name in SOFTMAXES:
        return "softmax"
    if name in NORMS or (leaf and "norm" in module):
        return "norm"
    if "pool" in name or (leaf and "pool" in module):
        return "pool"
    return "activation" if leaf or name in ACTIVATIONS else "elementwise"


def counted(name: str, elements: int) -> dict[str, int]:
    """Operations of a forward pass. A softmax compares, subtracts, exponentiates, adds, divides; a norm takes four operations a value."""
    if name in SOFTMAXES:
        return {"logic_ops": elements, "float_ops": 4 * elements}
    if name in NORMS:
        return {"float_ops": 4 * elements}
    return {"logic_ops": elements} if name in LOGIC else {"float_ops": elements}

"""Traces of networks: counts against torch's own counter and closed forms, and nothing changed by tracing."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tracking.energy_model import from_json, to_json, trace
from tracking.energy_model.layers import PRODUCT_PASSES
from tracking.errors import UserError
from workbench.datasets.models import MODELS, build
from workbench.methods.lowbit._activations import quantise_activations
from workbench.methods.lowbit.luq import quantise_layers


class Attention(nn.Module):
    """A transformer block, pre-norm, its attention by explicit products or as one function."""

    def __init__(self, width: int = 16, heads: int = 4, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.embed = nn.Embedding(11, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) / (width / self.heads) ** 0.5).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


class Mixed(nn.Module):
    """Weights on the left, used twice, multiplied with one another, and in an expression of letters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.w @ x.T  # (5, n)
        z = torch.einsum("ni,oi->no", x, self.w)
        return y.T @ self.v + z @ self.v + x @ (self.w.T @ self.v)


def conv_net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


SMALL = torch.Generator().manual_seed(0)
TOKENS = torch.zeros(2, 5, dtype=torch.int64)
NETWORKS = {
    **{name: (lambda name=name, side=side: build(name, (3, side, side), 10, 0.125, SMALL), torch.randn(4, 3, side, side))
       for name, side in ((name, max(16, least)) for name, (_, least) in MODELS.items())},
    "stride 2 kernel 3": (lambda: conv_net(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1)), torch.randn(2, 3, 9, 9)),
    "stride 3 kernel 1": (lambda: conv_net(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1, 3)), torch.randn(2, 3, 12, 12)),
    "dilation": (lambda: conv_net(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3, dilation=2, padding=2)), torch.randn(2, 3, 9, 9)),
    "one dimension": (lambda: conv_net(nn.Conv1d(3, 4, 5, 2), nn.Conv1d(4, 2, 3)), torch.randn(2, 3, 31)),
    "three dimensions": (lambda: conv_net(nn.Conv3d(2, 4, 3, 2), nn.Conv3d(4, 2, 2)), torch.randn(2, 2, 9, 9, 9)),
    "transposed": (lambda: conv_net(nn.Conv2d(3, 4, 3, 2), nn.ConvTranspose2d(4, 3, 4, 2, 1)), torch.randn(2, 3, 9, 9)),
    "attention": (Attention, TOKENS),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0), torch.randn(2, 5, 16)),
    "weights on the left": (Mixed, torch.randn(7, 6)),
}


def counted(model: nn.Module, x: Tensor) -> tuple[int, int]:
    """Multiply-accumulates by torch's counter: forward, and forward with backward."""
    with FlopCounterMode(display=False) as forward:
        y = model(x)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    return forward.get_total_flops() // 2, (forward.get_total_flops() + backward.get_total_flops()) // 2


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_torchs_counter(name):
    make, x = NETWORKS[name]
    model = make()
    model(x)  # lazy layers
    layers = trace(model, x)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # the fused kernel's backward computes scores anew
        forward, training = counted(model, x)
    assert sum(layer.macs for layer in layers) == forward > 0
    assert sum(layer.training_macs for layer in layers) == training
    assert sum(layer.parameters for layer in layers) == sum(p.numel() for p in model.parameters())
    assert len({layer.name for layer in layers}) == len(layers)
    assert {layer.samples for layer in layers} == {len(x)}


def test_grouped_convolution_is_one_product_for_each_group():
    # torch's counter does not divide the product to the weights by the number of groups, so this is counted by hand
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 8, 3, 2, 1, groups=4))
    layer = trace(model, (5, 4, 10, 10))[1]
    shapes = {p: layer.geometry(p) for p in layer.passes}
    assert {p: s.count for p, s in shapes.items()} == dict.fromkeys(PRODUCT_PASSES, 4)
    assert {s.macs for s in shapes.values()} == {5 * 5 * 5 * 8 * 1 * 9}
    assert [shapes["forward"].m, shapes["forward"].n, shapes["forward"].k] == [125, 2, 9]
    assert [shapes["weight_gradient"].m, shapes["weight_gradient"].n, shapes["weight_gradient"].k] == [2, 9, 125]
    with FlopCounterMode(display=False) as forward:
        model[1](torch.randn(5, 4, 10, 10))
    assert layer.macs == forward.get_total_flops() // 2


def test_input_gradient_of_a_strided_convolution_counts_useful_products():
    # dX[c, i] = sum over o, k with i = 2 o + k - 1: counted term by term
    layer = trace(nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 6, 3, 2, 1)), (2, 3, 8, 8))[1]
    terms = sum(0 <= i < 8 for o in range(4) for i in (2 * o - 1, 2 * o, 2 * o + 1))
    touching_padding = 12 - terms
    shape = layer.geometry("input_gradient")
    assert shape.macs == 2 * 4 * 6 * 12**2  # as torch counts: padding included
    assert touching_padding == 1
    # the product has the matrix form (B H W, Ci, Co k^2 / s^2) and its compulsory traffic is one read of the signal
    assert (shape.m, shape.n, shape.k) == (2 * 64, 4, round(6 * 9 / 4))
    assert shape.m * 6 * 9 / 4 / shape.window.kernel**2 == 2 * 6 * 16


def test_a_convolution_in_one_position_is_a_linear_layer():
    conv = trace(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 7, 4)), (6, 3, 4, 4))[1]
    linear = trace(nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 7)), (6, 48))[1]
    for which in ("forward", "weight_gradient"):
        a, b = conv.geometry(which), linear.geometry(which)
        assert (a.m, a.n, a.k, a.count, a.macs, a.roles) == (b.m, b.n, b.k, b.count, b.macs, b.roles)


def test_fused_attention_is_counted_as_its_products():
    for fused in (True, False):
        layers = {layer.name: layer for layer in trace(Attention(fused=fused), TOKENS)}
        assert layers["matmul"].input == (8, 5, 4)
        assert layers["matmul"].macs == layers["matmul#2"].macs == 2 * 4 * 5 * 5 * 4
        assert sum(layer.kind == "softmax" for layer in layers.values()) == 1
    fused, explicit = (sum(layer.training_macs for layer in trace(Attention(fused=f), TOKENS)) for f in (True, False))
    assert fused == explicit


def test_products_with_vectors_are_counted():
    class Vectors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.dot(x @ self.v, torch.mv(x, self.v))

    # torch's counter leaves these out; 7 x 6 twice, and 7
    assert sum(layer.macs for layer in trace(Vectors(), (7, 6))) == 7 * 6 + 7 * 6 + 7


def test_recurrent_and_inference_mode_hide_no_product():
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            with torch.inference_mode():
                return self.lstm(x)[0]

    for model in (Inner(), nn.LSTM(8, 16, batch_first=True).eval()):
        # Hochreiter & Schmidhuber's cell: four gates, each a product with the input and one with the state, at every step
        assert sum(layer.macs for layer in trace(model, (2, 3, 8))) == 2 * 3 * 4 * 16 * (8 + 16)


def test_gradients_follow_what_is_trainable():
    def gradients(model: nn.Module) -> list[tuple[bool, bool]]:
        return [(x.input_gradient, x.weight_gradient) for x in trace(model, (4, 6)) if x.is_product]

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    assert gradients(model) == [(False, True), (True, True), (True, True)]
    model[1].requires_grad_(False)
    assert gradients(model) == [(False, True), (True, False), (True, True)]
    model[0].requires_grad_(False)
    assert gradients(model) == [(False, False), (False, False), (False, True)]


def test_detach_stops_a_gradient_and_a_custom_function_does_not():
    class Times(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            return x @ w.detach().t()

        @staticmethod
        def backward(ctx, g):
            return None, None

    class Model(nn.Module):
        def __init__(self, stop: bool) -> None:
            super().__init__()
            self.stop, self.w, self.last = stop, nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = Times.apply(Times.apply(x, self.w), self.w)
            return self.last(x.detach() if self.stop else x)

    first, second, last = trace(Model(stop=False), (3, 4))
    assert (first.input_gradient, first.weight_gradient, first.parameters) == (False, True, 16)
    assert (second.input_gradient, second.weight_gradient, second.parameters) == (True, True, 0)  # the same weights
    assert last.input_gradient
    assert not trace(Model(stop=True), (3, 4))[-1].input_gradient


def test_tracing_leaves_the_model_and_the_generators_alone():
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(inplace=True))
            self.calls = 0
            self.register_buffer("seen", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = self.body(x + torch.rand_like(x))
            self.last = x
            self.seen += x.detach().mean((0, 2, 3))
            self.seen = self.seen * 0.9
            return x

    torch.manual_seed(3)
    model = Stateful()
    model.body[2].eval()
    before = {name: (t, t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    modes, attributes, rng = [m.training for m in model.modules()], set(model.__dict__), torch.get_rng_state()
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    backends = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled
    assert len(trace(model, (2, 3, 8, 8))) >= 4
    after = model.state_dict(keep_vars=True)
    assert before.keys() == after.keys()
    for name, (tensor, values) in before.items():
        assert after[name] is tensor
        assert torch.equal(tensor, values)
        assert tensor.grad is None
    assert model.calls == 0
    assert set(model.__dict__) == attributes
    assert [m.training for m in model.modules()] == modes
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert torch.equal(torch.get_rng_state(), rng)
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled, torch.backends.cudnn.enabled) == backends
    with pytest.raises(UserError, match="cannot be traced"):
        trace(model, (2, 5, 8, 8))  # five channels
    assert set(model.__dict__) == attributes


@pytest.mark.parametrize("make", [lambda: conv_net(nn.Conv2d(3, 4, 3)), lambda: build("resnet20", (3, 16, 16), 10, 0.25, SMALL)])
def test_meta_models_give_the_same_trace(make):
    model = make()
    if any(isinstance(m, nn.LazyLinear) for m in model.modules()):
        model(torch.randn(2, 3, 16, 16))
    usual = trace(model, (2, 3, 16, 16))
    assert usual == trace(model, torch.randn(2, 3, 16, 16))
    model.to("meta")
    assert usual == trace(model, (2, 3, 16, 16)) == trace(model, torch.randn(2, 3, 16, 16))
    assert all(p.is_meta for p in model.parameters())


def test_quantised_training_has_the_layers_of_the_plain_network():
    plain = trace(build("cnn", (3, 16, 16), 10, 0.25, SMALL), (4, 3, 16, 16))
    model = quantise_layers(quantise_activations(build("cnn", (3, 16, 16), 10, 0.25, SMALL), "4bit"), generator=torch.Generator())
    quantised = trace(model, (4, 3, 16, 16))

    def products(layers):
        return [(x.kind, x.input, x.weight, x.parameters, x.input_gradient, x.weight_gradient) for x in layers if x.is_product]

    assert products(plain) == products(quantised)
    # in evaluation the path depends on a buffer's value
    assert products(trace(model.eval(), (4, 3, 16, 16))) == products(plain)
    assert len([x for x in quantised if x.module == "FourBitActivation"]) == 3 + 4  # activations, and inputs of layers


def test_saved_activations_are_those_that_autograd_packs():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 7))
    x = torch.randn(2, 3, 8, 8)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in weights:
            kept[t.untyped_storage().data_ptr()] = t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    assert sum(layer.saved for layer in trace(model, x)) == sum(kept.values())
    assert y is not None  # kept alive, so that no address is used twice


def test_json_round_trip_and_its_refusals():
    layers = trace(Attention(), TOKENS)
    assert from_json(to_json(layers)) == layers
    data = json.loads(to_json(layers))
    for text in ("[]", "{", json.dumps({"layers": []}), json.dumps(data | {"format": 99}),
                 json.dumps(data | {"layers": [data["layers"][0] | {"colour": 1}]}),
                 json.dumps(data | {"layers": [{"name": "x"}]}), json.dumps(data | {"layers": [data["layers"][0] | {"kind": "magic"}]})):
        with pytest.raises(UserError):
            from_json(text)


@pytest.mark.parametrize("wrong", ["image", (), (3, -1), None, {"x": 3}])
def test_a_wrong_input_is_refused(wrong):
    with pytest.raises(UserError, match="refused"):
        trace(nn.Linear(3, 3), wrong)


def test_an_unknown_product_is_an_error_and_not_left_out():
    class Kernel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv1d(x, x.mean(0, keepdim=True))

    with pytest.raises(UserError, match="kernel that depends on its input"):
        trace(Kernel(), (2, 3, 8))

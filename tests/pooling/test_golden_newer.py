"""Parity with the authors' code of DropCov, SoT, Moment Probing, RiemGCP, iSICE and the global Gaussian embedding."""

import zlib

import numpy as np
import pytest
import torch
from support.golden import load, names, sample_errors
from support.matrices import relative_error
from torch import nn

from covpool_plugins.linalg import covariance, sqrtm
from covpool_plugins.pooling import create_pool
from covpool_plugins.pooling.weightings import AdaptiveChannelDropout, GaussianEmbedding

# A zero sample is NaN there, or the inverse of the jitter that was drawn; here it is zero.
NOT_COMPARED = {"rgcp__Pow": "zero", "rgcp__Scale": "zero", "isice__": "zero"}


# Of the output and of the gradients, those that the golden files' README suggests. The centring matrices of RiemGCP and
# iSICE are rounded to float32, which the Cholesky factor of a covariance near singular magnifies.
TOLERANCES = {"isice__": (2e-6, 2e-6), "rgcp__": (2e-7, 2e-7)}
MAGNIFIED = "rgcp__ChoTMLR__deficient", "rgcp__ChoTMLR__zero"


def tolerances(golden):
    if golden.name.startswith(MAGNIFIED):
        return 5e-4, 5e-3
    return (
        TOLERANCES.get(f"{golden.name.split('__')[0]}__", (1e-10, 1e-10))
        if golden.name.endswith("f64")
        else (1e-5, 1e-5)
    )


def check(golden, out, gradients, skip=0):
    of_output, of_gradients = tolerances(golden)
    assert max(sample_errors(out.detach().flatten(1), golden.arrays["output"].flatten(1))[skip:]) < of_output
    for entry, grad in gradients.items():
        expected = golden.arrays[entry]
        if entry.startswith("grad_param."):
            assert (grad.view_as(expected) - expected).norm() <= 2 * of_gradients * expected.norm(), entry
        else:
            assert max(sample_errors(grad, expected)[skip:]) < of_gradients, entry


class Drawn(nn.Module):
    """Dropout with what was drawn."""

    def __init__(self, golden, name):
        super().__init__()
        self.keep, self.rate = golden.arrays[f"draw.{name}"], float(golden.arrays[f"draw.{name}.rate"])

    def forward(self, x):
        return x * (self.keep / (1 - self.rate)).view_as(x) if self.training else x


def as_conv(weight):
    return weight[..., None, None]


# DropCov: adaptive channel dropout


def acd_pool(golden, monkeypatch):
    keys = {"eca_layer.conv.weight": "weighting.weight"}
    options = {"reduce_channels": None}
    if "layer_reduce.weight" in golden.entries("param."):
        options = {"reduce_channels": golden.meta["args"]["channels"]}
        keys["layer_reduce.weight"] = "reduction.conv.weight"
        keys |= {f"layer_reduce_bn.{leaf}": f"reduction.norm.{leaf}" for leaf in ("weight", "bias")}
        keys |= {f"layer_reduce_bn.running_{leaf}": f"reduction.norm.running_{leaf}" for leaf in ("mean", "var")}
    pool = create_pool("dropcov", golden.arrays["input"].shape[1], dtype=torch.float64, **options)
    state = golden.entries("param.") | golden.entries("buffer_before.")
    missing, unexpected = pool.load_state_dict(
        {ours: state[theirs] for theirs, ours in keys.items() if theirs in state}, strict=False
    )
    assert not unexpected and set(missing) <= {"reduction.norm.num_batches_tracked"}
    if golden.meta["mode"] == "train":
        # What is drawn is compared with the rate: one is never below it, and zero always but for the rate zero.
        kept = golden.arrays["draw.keep_mask"]
        monkeypatch.setattr(torch, "rand_like", lambda like: kept.to(like.dtype))
        rate = golden.arrays["draw.keep_mask.rate"]  # a float32 number there
        computed = pool.weighting.rate
        monkeypatch.setattr(pool.weighting, "rate", lambda *given: rate + 0 * computed(*given))
    return pool.train(golden.meta["mode"] == "train"), keys


@pytest.mark.parametrize("name", names("dropcov__ACD__", "dropcov__ACD_head__"))
def test_adaptive_channel_dropout(name, monkeypatch):
    golden = load(name)
    pool, keys = acd_pool(golden, monkeypatch)
    params = golden.entries("param.")
    fc = nn.Linear(pool.out_features, 5).double() if "fc.weight" in params else nn.Identity()
    fc.load_state_dict({key: params[f"fc.{key}"] for key in fc.state_dict()})
    x, out = golden.step(lambda x: fc(pool(x)))
    grads = {f"grad_param.{theirs}": ours for theirs, ours in keys.items() if f"grad_param.{theirs}" in golden.arrays}
    grads = {entry: pool.get_parameter(ours).grad for entry, ours in grads.items()}
    grads |= {f"grad_param.fc.{key}": parameter.grad for key, parameter in fc.named_parameters()}
    check(golden, out, {"grad_input": x.grad} | {entry: grad for entry, grad in grads.items() if grad is not None})
    assert golden.meta["mode"] != "train" or pool.weighting.weight.grad.any()
    for leaf, value in golden.entries("buffer_after.layer_reduce_bn.running_").items():
        assert relative_error(pool.get_buffer(f"reduction.norm.running_{leaf}"), value) < 1e-6


@pytest.mark.parametrize("name", [n for n in names("dropcov__ACD") if "_train" in n and "head" not in n])
def test_rate_of_channel_dropout(name):
    golden = load(name)
    X = golden.arrays["input"].flatten(2)
    part = AdaptiveChannelDropout(X.shape[1], dtype=torch.float64)
    part.load_state_dict({"weight": golden.arrays["param.eca_layer.conv.weight"]})
    omega = part.attention(X)
    assert relative_error(omega, golden.arrays["mid.omega"]) < 1e-5
    rate = part.rate(X * (1 + omega).unsqueeze(-1), omega)
    assert rate.item() == pytest.approx(golden.arrays["draw.keep_mask.rate"].item(), abs=2e-6)


# Cross-covariances: SoT, and the transformers of DropCov


def cross_pool(golden):
    args, params = golden.meta["args"], golden.entries("param.")
    heads, width = args["num_heads"], args["wr_dim"]
    options = {"alpha": args.get("alpha", 0.5)} if "alpha" in args else {"normalization": "none"}
    # All tokens are pooled, or those behind the class token.
    prefix = int("Classifier" in golden.name)
    pool = create_pool(
        "crosscov",
        golden.arrays["input"].shape[2],
        heads=heads,
        reduce_channels=heads * width,
        input_fmt="NLC",
        num_prefix_tokens=prefix,
        dtype=torch.float64,
        **options,
    )
    weight = params[next(key for key in params if key.endswith("wr.weight"))]
    rows = heads * width
    state = {f"reductions.{i}.weight": as_conv(weight[i * rows : (i + 1) * rows]) for i in (0, 1)}
    if "norm.weight" in params:
        state["normalization.weight"] = params["norm.weight"]
    pool.load_state_dict(state)
    if golden.meta["mode"] == "train":
        pool.token_dropout, pool.entry_dropout = Drawn(golden, "keep_tokens"), Drawn(golden, "keep_entries")
    return pool.train(golden.meta["mode"] == "train")


def grad_of_projection(pool, golden):
    grad = torch.cat([pool.reductions[i].weight.grad.flatten(1) for i in (0, 1)])
    (entry,) = [key for key in golden.arrays if key.startswith("grad_param.") and key.endswith("wr.weight")]
    unused = golden.arrays[entry].shape[0] - grad.shape[0]  # the last third of DropCov's
    return {entry: torch.cat([grad, grad.new_zeros(unused, grad.shape[1])])}


@pytest.mark.parametrize("name", names("dropcov__MGCrP", "sot__"))
def test_cross_covariances_of_several_heads(name):
    golden = load(name)
    pool = cross_pool(golden)
    x, out = golden.step(pool)
    fails = golden.meta["original_fails"] is not None  # the gradient of a zero sample, and so of all parameters
    grads = {"grad_input": x.grad} | ({} if fails else grad_of_projection(pool, golden))
    if not fails and pool.normalization is not None:
        grads["grad_param.norm.weight"] = pool.normalization.weight.grad
    check(golden, out, grads, skip=int(fails))
    assert not fails or (not out[0].any() and not x.grad[0].any())
    assert all(torch.isfinite(p.grad).all() for p in pool.parameters())


@pytest.mark.parametrize("name", names("dropcov__Classifier_sum_fc"))
def test_classifier_of_cross_covariances_and_class_token(name):
    golden = load(name)
    pool, params = cross_pool(golden), golden.entries("param.")

    def logits(x):
        both = torch.cat([pool(x), x[:, 0]], dim=1)
        weight = torch.cat([params["visual_fc.weight"], params["cls_fc.weight"]], dim=1)
        return both @ weight.T + params["visual_fc.bias"] + params["cls_fc.bias"]

    x, out = golden.step(logits)
    check(golden, out, {"grad_input": x.grad} | grad_of_projection(pool, golden))


# Moment probing


def weight_by_rule(key, shape):
    """The rule for weights that are not stored, see the README of the golden files."""
    bits = np.random.Philox(zlib.crc32(key.encode()))
    drawn = torch.from_numpy(np.random.Generator(bits).standard_normal(tuple(shape)))
    if key.endswith("bias"):
        drawn = 0.1 * drawn
    elif len(shape) < 2:
        drawn = 1 + 0.1 * drawn
    else:
        drawn = drawn * ((2.0 if len(shape) > 3 else 1.0) / np.prod(shape[1:])) ** 0.5
    return drawn.float().double()


def moment_head(golden):
    """Our pool, the classifier that is the mean of the two, and how their parameters are named."""
    args, stored = golden.meta["args"], golden.entries("param.")
    tokens = "cls_token" in golden.arrays
    D = golden.arrays["input"].shape[2 if tokens else 1]
    options = dict(input_fmt="NLC", num_prefix_tokens=1, first_order="token") if tokens else {}
    width = args.get("hidden_dim", 512)
    pool = create_pool(
        "moment", D, reduce_channels=width, first_norm="CNN" in golden.name, dtype=torch.float64, **options
    )
    keys = {"proj.weight": "reduction.weight", "proj.bias": "reduction.bias"}
    keys |= {f"ln.{leaf}": f"norm.{leaf}" for leaf in ("weight", "bias")}
    keys |= {f"downblocks.0.{2 * i}.weight": f"convolutions.{i}.weight" for i in (0, 1)}
    keys |= {f"cls_head.norm.{leaf}": f"first_norm.{leaf}" for leaf in ("weight", "bias") if "CNN" in golden.name}
    first, classes = ("classifier1" if tokens else "cls_head.fc"), golden.arrays["output"].shape[1]
    shapes = {theirs: pool.get_parameter(ours).shape for theirs, ours in keys.items()}
    if tokens:
        shapes["proj.weight"] = shapes["proj.weight"][:2]
    shapes |= {f"{first}.weight": (classes, D), "classifier2.weight": (classes, pool.out_features - D)}
    shapes |= {f"{first}.bias": (classes,), "classifier2.bias": (classes,)}
    given = {key: stored[key] if key in stored else weight_by_rule(key, shape) for key, shape in shapes.items()}
    pool.load_state_dict({ours: given[theirs].view_as(pool.get_parameter(ours)) for theirs, ours in keys.items()})
    fc = nn.Linear(pool.out_features, classes, dtype=torch.float64)
    weight = torch.cat([given[f"{first}.weight"], given["classifier2.weight"]], dim=1) / 2
    fc.load_state_dict({"weight": weight, "bias": (given[f"{first}.bias"] + given["classifier2.bias"]) / 2})
    return pool, fc, keys


@pytest.mark.parametrize("name", names("mp__CNN", "mp__MLP", "mp__ViT"))
def test_moment_probing(name):
    golden = load(name)
    pool, fc, keys = moment_head(golden)
    x = golden.arrays["input"].clone()
    if "cls_token" in golden.arrays:
        x[:, 0] = golden.arrays["cls_token"]
    x.requires_grad_()
    vector = pool(x)
    if "mid.convolved" in golden.arrays:
        expected = golden.arrays["mid.convolved"].flatten(1)
        assert max(sample_errors(vector[:, -expected.shape[1] :].detach(), expected)) < tolerances(golden)[0]
    fc(vector).backward(golden.arrays["grad_output"])
    grads = {"grad_input": x.grad}
    if "cls_token" in golden.arrays:
        grads = {"grad_input": x.grad.clone(), "grad_cls_token": x.grad[:, 0]}
        grads["grad_input"][:, 0] = 0
    stored = {f"grad_param.{theirs}": ours for theirs, ours in keys.items()}
    grads |= {key: pool.get_parameter(ours).grad for key, ours in stored.items() if key in golden.arrays}
    check(golden, fc(vector), grads)


# RiemGCP, iSICE, and the Gaussian


def covariance_pool(golden):
    args, name = golden.meta["args"], golden.name
    kind = name.split("__")[1]
    options = {"reduce_channels": args.get("dimension_reduction")}
    if kind.startswith("SICE"):
        options |= {"iterations": args["iterNum"], "step_size": args["sice_lrate"], "sparsity": args["sparsity_val"]}
    elif kind != "ChoTMLR":
        options["iterations"] = args["iterNum"]
    ours = {"SICE": "isice", "INVCOV": "precision", "ChoTMLR": "cholesky", "PowTMLR": "powtmlr"}
    ours |= {"ScalePowEMLR": "scalepow", "PowEMLR": "isqrt"}
    pool = create_pool(
        ours[kind.split("_")[0]],
        golden.arrays["input"].shape[1],
        compute="float64",
        dtype=torch.float64,
        **options,
    )
    keys = {}
    if options["reduce_channels"]:
        keys = {"conv_dr_block.0.weight": "reduction.conv.weight"}
        keys |= {f"conv_dr_block.1.{leaf}": f"reduction.norm.{leaf}" for leaf in ("weight", "bias")}
        stored = golden.entries("param.")
        pool.load_state_dict({ours: stored[theirs] for theirs, ours in keys.items()}, strict=False)
    return pool, keys


@pytest.mark.parametrize("name", names("rgcp__", "isice__"))
def test_functions_of_the_covariance(name):
    golden = load(name)
    pool, keys = covariance_pool(golden)
    x, out = golden.step(pool)
    skip = int(any(name.startswith(prefix) and kind in name for prefix, kind in NOT_COMPARED.items()))
    grads = {f"grad_param.{theirs}": pool.get_parameter(ours).grad for theirs, ours in keys.items()}
    check(golden, out, {"grad_input": x.grad} | grads, skip)
    if skip:
        # The limit for small features: of the tangent space at I, of what is homogeneous, of a bounded inverse.
        expected = -2 * torch.eye(pool.channels, dtype=out.dtype) if "PowTMLR" in name else torch.zeros(())
        assert (pool.matrix(out[:1]) - expected).abs().max() == 0 and not x.grad[0].any()


@pytest.mark.parametrize("name", names("g2de__"))
def test_gaussian_embedding(name):
    golden = load(name)
    x = golden.arrays["input"].requires_grad_()
    P = covariance(GaussianEmbedding()(x.flatten(2)), centered=False)
    assert max(sample_errors(P.detach(), golden.arrays["mid.embedding"])) < 1e-14
    # The authors' root is that of P + 1e-3 I on the range of P.
    values, U = torch.linalg.eigh(P.detach())
    shifted = torch.where(values > 1e-10, values + 1e-3, 0.0).sqrt()
    expected = golden.arrays["output"].view_as(P)
    assert max(sample_errors((U * shifted.unsqueeze(-2)) @ U.mT, expected)) < 1e-12
    if "well" not in name:
        return  # their gradient is wrong there: zero for equal eigenvalues, and incomplete for a singular P
    root = sqrtm(P + 1e-3 * torch.eye(P.shape[-1], dtype=P.dtype))
    root.backward(golden.arrays["grad_output"].view_as(root))
    assert max(sample_errors(root.detach(), expected)) < 1e-12
    assert max(sample_errors(x.grad, golden.arrays["grad_input"])) < 1e-12


@pytest.mark.parametrize("vectorize", ["full", "triu"])
def test_gaussian_pool_is_the_root_of_its_embedding(vectorize):
    golden = load("g2de__GGE__deficient_2x20x3x4_f64")
    pool = create_pool("gaussian", 20, reduce_channels=None, vectorize=vectorize)
    root = pool.matrix(pool(golden.arrays["input"]))
    assert root.shape == (2, 21, 21)
    assert max(sample_errors(root @ root, golden.arrays["mid.embedding"])) < 1e-12

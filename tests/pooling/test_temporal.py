"""Temporal-attentive covariance pooling: the released layers, the formulas, clips, degenerate input."""

import pytest
import torch
from support.golden import load, names, sample_errors
from support.golden_models import golden_weight
from support.matrices import exact_covariance_root, features, relative_error

from covpool_plugins.linalg import covariance, covariance_sqrt, sqrtm
from covpool_plugins.linalg.packing import unpack_gradient
from covpool_plugins.pooling import create_pool

KEYS = {
    "layer_reduce1": "reduction.first.conv",
    "layer_reduce_bn1": "reduction.first.norm",
    "layer_reduce2": "reduction.second.conv",
    "layer_reduce_bn2": "reduction.second.norm",
    "TCP_att.TCA.g1": "attention.channel.squeeze",
    "TCP_att.TCA.g2": "attention.channel.excite",
    "TCP_att.TSA.conv_phi_1": "attention.spatial.query",
    "TCP_att.TSA.conv_phi_2": "attention.spatial.key",
    "TCP_att.TSA.conv_phi0": "attention.spatial.value",
    "TCP_att.TSA.norm": "attention.spatial.norm",
    "TCP_att.conv_1d": "attention.convolution.conv",
}
NETWORKS = names("tacp__TCP")
WITHOUT_ATTENTION = dict.fromkeys(["channel_attention", "spatial_attention", "temporal_convolution"], False)
RUNNING = [name for name in NETWORKS if load(name).meta["original_fails"] is None]


def our_key(theirs):
    layer, leaf = theirs.rsplit(".", 1)
    return f"{KEYS[layer]}.{leaf}"


def released_pool(golden):
    """The pool of a golden file, with its parameters and buffers."""
    args = golden.meta["args"]
    pool = create_pool(
        "temporal",
        args["dim_in"],
        method="mpa",
        reduce_channels=args["dim_out"],
        frames=args["num_segments"],
        level=args["level"],
        channel_attention=args.get("ch_flag", True),
        spatial_attention=args.get("sp_flag", True),
        temporal_convolution=args.get("conv_1d_flag", True),
        dtype=torch.float64,
    ).train(golden.meta["mode"] == "train")
    state = {our_key(k): v for k, v in golden.entries("buffer_before.").items()}
    for theirs, value in golden.entries("grad_param.").items():
        key = our_key(theirs)
        state[key] = golden_weight(theirs, value.shape).reshape(pool.get_parameter(key).shape)
    if golden.meta["original_fails"] is None:
        assert state.keys() == pool.state_dict().keys()
    pool.load_state_dict(state, strict=golden.meta["original_fails"] is None)
    return pool


def released_pade_gradient(X, grad_output):
    """Of the released Padé root, for features: eight steps of the Lyapunov solver from S / √‖A‖, not S / ‖S‖."""
    A = covariance(X)
    B, R = sqrtm(A.detach(), "mpa"), unpack_gradient(grad_output.flatten(1), X.shape[1])
    eye = torch.eye(X.shape[1], dtype=X.dtype)
    B, R = (M / A.detach().norm(dim=(1, 2), keepdim=True).sqrt() for M in (B, R))
    for _ in range(8):
        R = (R @ (3 * eye - B @ B) - B @ B @ R + B @ R @ B) / 2
        B = B @ (3 * eye - B @ B) / 2
    return torch.autograd.grad(A, X, R / 2)[0]


def random_pool(*args, seed=0, **options):
    """A float64 pool whose attention is not the identity."""
    pool = create_pool("temporal", *args, dtype=torch.float64, **options)
    generator = torch.Generator().manual_seed(seed)
    for parameter in pool.parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        parameter.data = noise / max(1, parameter[0].numel()) ** 0.5
    return pool


def clips(count, frames, channels=5, height=3, width=4):
    return features(channels, height * width, batch=count * frames, seed=frames).unflatten(-1, (height, width))


# Of the root's output and gradient; our Padé root takes one more step of the same solver from another scale.
LAYERS = {
    "Sqrtm": ({}, 2e-6, 2e-6),
    "MPA": ({"method": "mpa", "gradient": "lyapunov"}, 5e-5, 5e-4),
}


@pytest.mark.parametrize("name", names("tacp__TACP_Sqrtm", "tacp__TACP_MPA"))
def test_layers_of_the_root(name):
    golden = load(name)
    options, of_output, of_gradient = LAYERS["MPA" if "MPA" in name else "Sqrtm"]
    channels = golden.arrays["input"].shape[1]
    x, out = golden.step(create_pool("temporal", channels, reduce_channels=None, **options, **WITHOUT_ATTENTION))
    # The first sample of these is zero, the original's gradient NaN. Its trace is 1e-5 too large, forward only.
    first = int("zero" in name)
    assert max(sample_errors(out[first:], golden.arrays["output"][first:].flatten(1))) < of_output
    assert max(sample_errors(x.grad[first:], golden.arrays["grad_input"][first:])) < of_gradient
    assert not out[:first].any() and not x.grad[:first].any()
    if options:
        X = x.detach().flatten(2)[first:].requires_grad_()
        grad = released_pade_gradient(X, golden.arrays["grad_output"][first:])
        assert max(sample_errors(grad, golden.arrays["grad_input"].flatten(2)[first:])) < 1e-4


@pytest.mark.parametrize("name", RUNNING)
def test_released_networks(name):
    golden = load(name)
    pool = released_pool(golden)
    x = golden.arrays["input"].requires_grad_()
    X = pool.features(x)
    assert max(sample_errors(pool.represent(X).detach(), golden.arrays["output"].flatten(1))) < 5e-5
    leaf = X.detach().requires_grad_()
    X.backward(released_pade_gradient(leaf, golden.arrays["grad_output"]))
    assert max(sample_errors(x.grad, golden.arrays["grad_input"])) < 1e-4
    gradients = golden.entries("grad_param.")
    assert len(gradients) == len(list(pool.parameters()))
    for theirs, expected in gradients.items():
        mine = pool.get_parameter(our_key(theirs)).grad.reshape(expected.shape)
        # Nothing but rounding where softmax, norm or covariance do not see a bias.
        scale = 1.0 if expected.norm() < 1e-5 else expected.norm()
        assert (mine - expected).norm() < 1e-4 * scale, theirs
    for theirs, expected in golden.entries("buffer_after.").items():
        mine = pool.get_buffer(our_key(theirs))
        assert torch.allclose(mine.double(), expected, rtol=1e-5, atol=1e-6), theirs


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in RUNNING])
def test_networks_that_the_original_cannot_run(name):
    golden = load(name)
    pool = released_pool(golden).eval()
    out = pool(golden.arrays["input"])
    assert out.shape == (2, 36) and torch.isfinite(out).all() and out.any()
    assert pool.attention.convolution.conv.kernel_size[0] % 2 == 1


def calibrated_frame(attention, clip, t):
    """Frame t of a clip (T, C, M) by the formulas, one frame at a time."""
    T, C, _ = clip.shape

    def affine(layer, X):
        return layer.weight @ X + layer.bias[:, None]

    def calibrated(t):
        result = clip[t]
        if attention.spatial is not None:
            one_back, two_back = clip[max(t - 1, 0)], clip[max(t - 2, 0)]
            scores = affine(attention.spatial.query, one_back).T @ affine(attention.spatial.key, two_back)
            weights = torch.exp(scores / C**0.5)
            gathered = affine(attention.spatial.value, clip[t]) @ (weights / weights.sum(1, keepdim=True)).T
            norm = attention.spatial.norm
            slope = norm.weight / (norm.running_var + norm.eps).sqrt()
            result = result + slope[:, None] * (gathered - norm.running_mean[:, None]) + norm.bias[:, None]
        if attention.channel is not None:
            means = clip.mean(2)
            squeezed = [torch.relu(attention.channel.squeeze((means[t] - means[t - k]) / k)) for k in (1, 2)]
            gates = [torch.sigmoid(attention.channel.excite(change)) for change in squeezed]
            result = result * (0.5 * (gates[0] + gates[1]))[:, None]
        return result

    if attention.convolution is None:
        return calibrated(t)
    kernel = attention.convolution.conv.weight[..., 0]
    half = kernel.shape[2] // 2
    mixed = sum(kernel[..., s + half] @ calibrated((t + s) % T) for s in range(-half, half + 1))
    return torch.relu(clip[t] + mixed + attention.convolution.conv.bias[:, None])


@pytest.mark.parametrize("level", ["video", "frame"])
@pytest.mark.parametrize("frames", [3, 6])
@pytest.mark.parametrize("off", [None, "channel_attention", "spatial_attention", "temporal_convolution"])
def test_pool_is_what_the_formulas_say(level, frames, off):
    options = {} if off is None else {off: False}
    pool = random_pool(5, method="exact", frames=frames, level=level, reduce_channels=None, **options).eval()
    if pool.attention.spatial is not None:
        pool.attention.spatial.norm.running_mean.uniform_(-0.5, 0.5)
        pool.attention.spatial.norm.running_var.uniform_(0.5, 2)
    x = clips(2, frames)
    expected = [
        torch.stack([calibrated_frame(pool.attention, clip, t) for t in range(frames)])
        for clip in x.flatten(2).unflatten(0, (2, frames))
    ]
    X = torch.cat(expected)
    if level == "video":
        X = X.unflatten(0, (2, frames)).transpose(1, 2).flatten(2)
    row, column = torch.triu_indices(5, 5)
    assert relative_error(pool.features(x), X) < 1e-12
    assert relative_error(pool(x), exact_covariance_root(X)[:, row, column]) < 1e-9


def test_without_attention_it_is_the_plain_pool():
    pool = create_pool("temporal", 12, frames=3, level="frame", reduce_channels=6, **WITHOUT_ATTENTION).eval()
    plain = create_pool("isqrt", 12, iterations=3, reduce_channels=6, reduction="conv-bn-relu-twice").eval()
    plain.load_state_dict(pool.state_dict())
    x = clips(2, 3, channels=12).float()
    assert torch.equal(pool(x), plain(x))
    together = create_pool("temporal", 12, frames=3, reduce_channels=6, **WITHOUT_ATTENTION).eval()
    together.load_state_dict(pool.state_dict())
    joint = plain.reduction(x).flatten(2).unflatten(0, (2, 3)).transpose(1, 2).flatten(2)
    assert relative_error(together(x), plain.represent(joint)) < 1e-6


@pytest.mark.parametrize("frames", [1, 4])
def test_a_new_pool_is_the_plain_pool(frames):
    pool = create_pool("temporal", 12, method="exact", frames=frames, reduce_channels=None, level="frame")
    x = clips(2, frames, channels=12)
    row, column = torch.triu_indices(12, 12)
    assert relative_error(pool(x), covariance_sqrt(x.flatten(2), "exact")[:, row, column]) < 1e-6


@pytest.mark.parametrize("level", ["video", "frame"])
def test_clips_do_not_meet(level):
    frames, order = 4, torch.tensor([2, 0, 1])
    pool = random_pool(5, frames=frames, level=level, reduce_channels=3).eval()
    x = clips(3, frames)
    expected = pool(x).unflatten(0, (3, -1))
    permuted = x.unflatten(0, (3, frames))[order].flatten(0, 1)
    assert relative_error(pool(permuted).unflatten(0, (3, -1)), expected[order]) < 1e-12
    assert relative_error(pool(x[4:8]), expected[1]) < 1e-12
    x[5, 2, 1, 1] = torch.nan
    out = pool(x).unflatten(0, (3, -1))
    assert relative_error(out[[0, 2]], expected[[0, 2]]) < 1e-12 and out[1].isnan().any()


@pytest.mark.parametrize("level", ["video", "frame"])
def test_gradients(level):
    pool = random_pool(3, method="exact", frames=3, level=level, reduce_channels=None, gate_channels=4)
    x = clips(2, 3, channels=3).requires_grad_()
    parameters = dict(pool.named_parameters())

    def run(x, *values):
        return torch.func.functional_call(pool, dict(zip(parameters, values, strict=True)), (x,)).sin()

    for training in (False, True):
        pool.train(training)
        assert torch.autograd.gradcheck(run, (x, *parameters.values()), atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ["zero", "constant", "still", "one position"])
def test_degenerate_clips_give_finite_numbers(kind, training):
    pool = random_pool(5, frames=3, reduce_channels=None).float().train(training)
    x = clips(2, 3).float()
    x[:3] = {
        "zero": torch.zeros_like,
        "constant": lambda x: torch.full_like(x, 0.1),
        "still": lambda x: x[:1].expand_as(x),
        "one position": lambda x: x * (torch.arange(12) == 3).view(3, 4),
    }[kind](x[:3])
    x.requires_grad_()
    out = pool(x)
    (grad,) = torch.autograd.grad((torch.linspace(-1, 1, 30).view(2, 15) * out).sum(), x)
    assert torch.isfinite(out).all() and torch.isfinite(grad).all() and grad[3:].any()


def test_autocast_is_computed_in_float32():
    attention = random_pool(5, frames=3, reduce_channels=None).eval().float().attention
    X = clips(2, 3).flatten(2).unflatten(0, (2, 3)).bfloat16()
    exact = attention(X.double())
    with torch.autocast("cpu", torch.bfloat16):
        out = attention(X)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, exact) < torch.finfo(torch.bfloat16).eps / 2


@pytest.mark.slow
def test_exports_and_compiles_for_any_number_of_clips():
    pool = random_pool(5, frames=4, reduce_channels=3).eval()
    shapes = ({0: 4 * torch.export.Dim("clips")},)
    program = torch.export.export(pool, (clips(2, 4),), dynamic_shapes=shapes).module()
    # PyTorch itself keeps a size it divides, here the number of clips, from becoming one.
    for count in (2, 5):
        assert relative_error(program(clips(count, 4)), pool(clips(count, 4))) < 1e-10
    torch.compiler.reset()
    compiled = torch.compile(pool, fullgraph=True, backend="eager", dynamic=True)
    for count in (2, 5, 1):
        assert relative_error(compiled(clips(count, 4)), pool(clips(count, 4))) < 1e-10


def test_method_by_default_is_the_released_one():
    assert [create_pool("temporal", 4, **o).method.iterations for o in ({}, {"iterations": 4})] == [3, 4]
    assert create_pool("temporal", 4, method="mpa", degree=3).method.degree == 3

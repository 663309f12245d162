"""Bad input: one line that names the value and what is allowed."""

import pytest
import torch

from covpool_plugins.errors import DtypeError, OptionError, ShapeError
from covpool_plugins.pooling import BilinearPool, create_pool, list_pools
from covpool_plugins.pooling.singular_value_power import SingularValuePower

COUNT = "must be a positive integer, got 0"
OPTIONS = [
    ("svdpate", {}, "unknown pool 'svdpate'; available: svdpade, "),
    ("gap", dict(reduce_channels=2), "pool 'gap' has no option 'reduce_channels'; its options: input_fmt"),
    ("isqrt", dict(iteration=3), "pool 'isqrt' has no option 'iteration'; its options: scaling"),
    ("isqrt", dict(reduce_channels=0), "reduce_channels must be a positive integer or None, got 0"),
    ("isqrt", dict(num_prefix_tokens=-1), "num_prefix_tokens must be an integer >= 0, got -1"),
    ("isqrt", dict(num_prefix_tokens=1), "num_prefix_tokens=1 needs input_fmt='NLC', got 'NCHW'"),
    ("isqrt", dict(centered="no"), "centered must be True or False, got 'no'"),
    ("isqrt", dict(reduction="conv"), "unknown reduction 'conv'; available: conv-bn-relu, "),
    ("isqrt", dict(vectorize="tril"), "vectorize must be one of full, triu, got 'tril'"),
    ("isqrt", dict(compute="half"), "compute must be one of mixed, float32, float64, got 'half'"),
    ("isqrt", dict(input_fmt="NHCW"), "input_fmt must be one of NCHW, NHWC, NLC, NCL, NCDHW, got 'NHCW'"),
    ("bcnn", dict(reduction="conv-bn-relu"), "reduction='conv-bn-relu' needs reduce_channels"),
    ("cbp", dict(projection=0), f"projection {COUNT}"),
    ("cbp", dict(seed=-1), "seed must be an integer from 0 to .*, got -1"),
    ("cbp", dict(route="dft"), "route must be one of auto, matrix, fft, got 'dft'"),
    ("cbp", dict(eps=0), r"must be a number in \(0, 1\), got 0"),
    ("lrbp", dict(filters=0), f"filters {COUNT}"),
    ("lrbp", dict(rank=3), "rank must be a positive even integer, got 3"),
    ("svpn", dict(alpha=0), r"svpn: alpha must be a number in \(0, 1\], got 0"),
    ("svpn", dict(eps=-1), r"svpn: eps must be a number in \[0, 1\), got -1"),
    ("svpn", dict(iterations=0), f"svpn: iterations {COUNT}"),
    ("svpn", dict(n=9), "svpn: n must be an integer from 1 to 8 or None, got 9"),
    ("svpn", dict(n=2), "svpn: n=2 needs iterations >= 2, got 1"),
    ("svpn", dict(start="zeros"), "svpn: start must be one of learned, ones, got 'zeros'"),
    ("crosscov", dict(reduce_channels=(6, 4), iterations=2, n=5), "svpn: n must be an integer from 1 to 4 or None"),
    ("crosscov", dict(reduce_channels=(6, 4, 2)), r"one or two positive integers or None, got \(6, 4, 2\)"),
    ("crosscov", dict(normalization="root"), "normalization must be one of svpn, none, got 'root'"),
    *(
        (
            "crosscov",
            dict(normalization="none") | {option: value},
            f"normalization='none' has no option '{option}', got",
        )
        for option, value in dict(alpha=0.7, iterations=2, n=None, start="ones", eps=1e-3).items()
    ),
    ("svpn", dict(n=None, iterations=2, eps=0.0), "svpn: n=None leaves no rest, and takes no option 'eps', got 0.0"),
    ("crosscov", dict(reduce_channels=None, reduction="projection"), "reduction='projection' needs reduce_channels"),
    ("temporal", dict(channel_attention=False, gate_channels=8), "gate_channels=8 needs channel_attention=True"),
    ("scalepow", dict(theta=0.3, method="mpa"), "theta=0.3 is no square root, and takes no option 'method'"),
    ("temporal", dict(frames=0), f"frames {COUNT}"),
    ("temporal", dict(gate_channels=0), f"gate_channels {COUNT}"),
    ("temporal", dict(level="clip"), "level must be one of video, frame, got 'clip'"),
    ("temporal", dict(spatial_attention="no"), "spatial attention must be True or False, got 'no'"),
    ("crosscov", dict(heads=3), "crosscov: heads must be a divisor of 8 and 8 channels, got 3"),
    ("crosscov", dict(heads=2, centered="no"), "crosscov: centered must be one of True, False, head, got 'no'"),
    ("crosscov", dict(token_dropout=1.0), r"crosscov: token_dropout must be a number in \[0, 1\), got 1.0"),
    ("crosscov", dict(entry_dropout=-1), r"crosscov: entry_dropout must be a number in \[0, 1\), got -1"),
    ("moment", dict(heads=5), "moment: heads must be a divisor of the 512 channels from 2 on, got 5"),
    ("moment", dict(reduce_channels=5), "moment: heads must be a divisor of the 5 channels from 2 on, got 1"),
    ("moment", dict(reduce_channels=8, convolutions=1), "heads of 2 channels leave nothing for 1 convolutions"),
    ("moment", dict(interleaved="no"), "moment: interleaved must be True or False, got 'no'"),
    ("moment", dict(first_norm=1), "moment: first_norm must be one of False, True, positions, got 1"),
    ("moment", dict(convolutions="two"), "moment: convolutions must be an integer >= 0, got 'two'"),
    ("moment", dict(convolutions=-1), "moment: convolutions must be an integer >= 0, got -1"),
    ("moment", dict(first_order="max"), "moment: first_order must be one of mean, token, got 'max'"),
    ("moment", dict(first_order="token"), "first_order='token' needs num_prefix_tokens >= 1, got 0"),
    ("democratic", dict(gamma=1.5), r"democratic: gamma must be a number in \[0, 1\], got 1.5"),
    ("democratic", dict(iterations=0), f"democratic: iterations {COUNT}"),
    ("democratic", dict(damping=0), r"democratic: damping must be a number in \(0, 1\], got 0"),
    ("dropcov", dict(rate=0.5), "pool 'dropcov' has no option 'rate'; its options: centered"),
    ("gaussian", dict(weight=0), r"gaussian: weight must be a number in \(0, inf\), got 0"),
    ("gaussian", dict(centered=True), "gaussian: centered must be False, for the matrix holds the mean, got True"),
    ("scalepow", dict(theta=0), r"scalepow: theta must be a number in \(0, 1\], got 0"),
    (
        "powtmlr",
        dict(theta=0.3, iterations=7),
        "powtmlr: theta=0.3 is no square root, and takes no option 'iterations'",
    ),
    ("scalepow", dict(alpha=1), "pool 'scalepow' has no option 'alpha'; its options: method, scaling"),
    ("cholesky", dict(eps=0), r"cholesky: eps must be a number in \(0, inf\), got 0"),
    ("precision", dict(iterations=0), f"precision: iterations {COUNT}"),
    ("isice", dict(iterations=1), "isice: iterations must be an integer >= 2, got 1"),
    ("isice", dict(step_size=0), r"isice: step_size must be a number in \(0, inf\), got 0"),
    ("isice", dict(sparsity=-0.1), r"isice: sparsity must be a number in \[0, inf\), got -0.1"),
    ("maxexp", dict(eta=0.5), "maxexp: eta must be a positive integer, got 0.5"),
]
MAPS = torch.ones(2, 4, 3, 3)
CALLS = [
    (lambda: create_pool("isqrt", 0), f"in_channels {COUNT}"),
    (lambda: create_pool("bcnn", 4)(MAPS.long()), "must be real floating point, got torch.int64"),
    (lambda: create_pool("gap", 4)(MAPS.flatten(2)), r"NCHW with in_channels=4, got shape \(2, 4, 9\)"),
    (
        lambda: create_pool("gap", 4, input_fmt="NLC", num_prefix_tokens=3)(torch.ones(2, 3, 4)),
        r"no positions to pool over, got shape \(2, 3, 4\)",
    ),
    (lambda: create_pool("temporal", 4, frames=4)(MAPS), "a batch of 2 frames is no whole number of clips of 4 frames"),
    (lambda: BilinearPool(4, -1), "second_channels must be a positive integer, got -1"),
    (lambda: BilinearPool(4, 5)(MAPS), "4 and 5 channels: expected two inputs"),
    (lambda: BilinearPool(4, 5)(MAPS, MAPS), r"second input\) pool: expected NCHW with in_channels=5, got shape"),
    (lambda: BilinearPool(4)(MAPS, MAPS[:, :, 1:]), r"same batch and positions, got .* \(2, 4, 9\) and \(2, 4, 6\)"),
    (lambda: SingularValuePower(6, 5).function(MAPS), r"svpn: expected matrices \(..., 6, 5\), got \(2, 4, 3, 3\)"),
]
TOKENS = torch.ones(2, 3, 4)
CALLS += [
    (lambda m=mask: create_pool("gap", 4, input_fmt="NLC", num_prefix_tokens=1)(TOKENS, m), message)
    for mask, message in [
        (torch.ones(2, 3, dtype=torch.bool), r"mask must be \(batch, positions\), here \(2, 2\), got shape \(2, 3\)"),
        (torch.ones(2, 2), "mask must be a boolean tensor, got torch.float32"),
        ([[True]], "mask must be a boolean tensor, got list"),
    ]
]
CALLS += [
    (lambda: create_pool("gap", 4).matrix(torch.ones(2, 4)), "gap pool: its vectors hold no symmetric matrices"),
    (
        lambda: create_pool("isqrt", 4).matrix(torch.ones(2, 9)),
        r"isqrt pool: expected vectors \(..., 10\), got shape \(2, 9\)",
    ),
    (
        lambda: create_pool("isqrt", 4, reduce_channels=None)(MAPS, torch.zeros(2, 9)),
        "mask must be a boolean tensor",
    ),
    (
        lambda: create_pool("isqrt", 4)(MAPS, torch.zeros(2, 9, dtype=torch.bool)),
        "no positions to train a batch norm on",
    ),
]
CALLS += [(lambda n=name, o=options: create_pool(n, 8, **o), message) for name, options, message in OPTIONS]


@pytest.mark.parametrize("call, message", CALLS, ids=[message for _, message in CALLS])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", list_pools())
def test_every_pool_names_what_is_wrong(name):
    pool = create_pool(name, 4)
    masks = [torch.ones(2, 9), torch.ones(2, 3, 3, dtype=torch.bool), [[True]]]
    inputs = [MAPS[0], MAPS[:, :3], MAPS[..., :0], MAPS.long(), MAPS.cfloat(), MAPS.numpy()]
    calls = [*((MAPS, mask) for mask in masks), *((x,) for x in inputs)]
    for call in calls:
        with pytest.raises((ShapeError, DtypeError)) as caught:
            pool(*call)
        assert "\n" not in str(caught.value)
    for vectors in (torch.ones(2, 3), [1.0, 2.0]):
        with pytest.raises((ShapeError, DtypeError, OptionError)):
            pool.matrix(vectors)
    with pytest.raises(OptionError, match=r"in_channels must be a positive integer, got 4\.0"):
        create_pool(name, 4.0)
    assert pool(MAPS[:0]).shape == (0, pool.out_features)

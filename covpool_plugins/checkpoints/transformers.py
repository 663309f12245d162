"""Checkpoints of transformers, and of what moment probing makes of them and of ConvNeXt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import timm

from ..timm_plugin.psrp import PART_OF_KEYS as PART_OF_PSRP
from ..timm_plugin.token_transformers import MODELS as TOKEN_MODELS
from ..timm_plugin.token_transformers import TokenModel
from .backbones import CONVNEXTS, Shapes, numbered
from .network import TOKEN_POOL, Network
from .original_state import OriginalState
from .placement import Dropped, Hints, Placement, Places, Plan, RefusedError, Renaming, by_renaming

POOL = "head.global_pool"
VITS = {(192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large"}
SWINS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "tiny",
    (96, (2, 2, 18, 2)): "small",
    (128, (2, 2, 18, 2)): "base",
    (192, (2, 2, 18, 2)): "large",
}
PATCHES_OF_SWIN = 32  # sides of a picture over a window's


PROJECTION = "classifier.representation.wr.weight"
OF_SOT = (
    Renaming(r"^visual_tokens\.tokens\.stem\.0\.", "patch_embed.backbone.stem."),
    Renaming(r"^visual_tokens\.tokens\.stage\.", "patch_embed.backbone.stages."),
    Renaming(r"^visual_tokens\.tokens\.transition\.", "patch_embed.proj."),
    Renaming(r"^classifier\.representation\.norm\.", f"{POOL}.normalization."),
    Renaming(r"^classifier\.visual_fc\.", "head.fc.", 0, "sum"),
    Renaming(r"^classifier\.cls_fc\.", "head.fc.", 1, "sum"),
)
REDUCTION = r"^classifier\.representation\.conv_dr_block\."
OF_SO_VIT = (
    *OF_SOT,
    Renaming(REDUCTION + r"(\d)\.0\.", rf"{POOL}.reductions.\1.conv."),
    Renaming(REDUCTION + r"(\d)\.1\.", rf"{POOL}.reductions.\1.norm."),
    Renaming(REDUCTION + r"0\.", f"{POOL}.reduction.conv."),
    Renaming(REDUCTION + r"1\.", f"{POOL}.reduction.norm."),
    Renaming(r"^classifier\.normalization\.", f"{POOL}.normalization."),
)


def so_vit(state: OriginalState, hints: Hints) -> Plan | None:
    """So-ViT of FastDifferentiableMatSqrt: visual tokens, blocks, two classifiers."""
    if not state.has("visual_tokens.", "blocks.", "classifier.visual_fc.") or state.has(PROJECTION):
        return None
    depth = len({key.split(".")[1] for key in state.tensors if key.startswith("blocks.")})
    name = f"so_vit_{depth}"
    if name not in TOKEN_MODELS:
        known = ", ".join(known for known in TOKEN_MODELS if known.startswith("so_vit_"))
        raise RefusedError(f"{state.file_name}: {depth} blocks are no So-ViT; known: {known}")
    pool, notes = _token_pool(state, hints)
    arguments = {} if pool == TOKEN_POOL else {"global_pool": pool}
    network = Network(name, state.shape("classifier.cls_fc.weight")[0], backbone_kwargs=arguments)
    return Plan("So-ViT (FastDifferentiableMatSqrt)", network, by_renaming(OF_SO_VIT), notes)


def _token_pool(state: OriginalState, hints: Hints) -> tuple[str, list[str]]:
    """The pool of a So-ViT, and what there is to say."""
    if hints.head is not None:
        return hints.head, []
    if state.has("classifier.representation.conv_dr_block.0.0."):
        return "crosscov", []
    if state.has("classifier.normalization."):
        return "svpn", []
    return TOKEN_POOL, [
        f"head {TOKEN_POOL!r}, which the repository trains, is a guess: isqrt has the same keys; see --head"
    ]


def sot(state: OriginalState, hints: Hints) -> Plan | None:
    """SoT, and DropCov's transformers, which have a third projection that nothing uses, and no norm in the head."""
    if not state.has("visual_tokens.", "blocks.", PROJECTION):
        return None
    dropcov = not state.has("classifier.representation.norm.")
    width, hidden = state.shape("cls_token")[-1], state.shape("blocks.0.mlp.fc1.weight")[0]
    sizes = (dropcov, width, *numbered(state.under(""), "blocks"), hidden)
    names = {_sizes(row): name for name, row in TOKEN_MODELS.items() if row.pool == "crosscov"}  # no So-ViT
    if sizes not in names:
        known = "; ".join(f"{name} {width} x {depth} blocks" for (_, width, depth, _), name in names.items())
        raise RefusedError(
            f"{state.file_name}: {width} channels x {sizes[2]} blocks are no SoT or DropCov; known: {known}"
        )
    renamed = by_renaming(OF_SOT)
    halves: list[Placement | Dropped] = [Placement(f"{POOL}.reductions.{i}.weight", ones=True) for i in range(2)]
    halves += [Dropped("the third projection, which the release computes and does not use")] * dropcov

    def place(key: str) -> Places:
        return halves if key == PROJECTION else renamed(key)

    _check_head(hints, "crosscov")
    network = Network(names[sizes], state.shape("classifier.cls_fc.weight")[0])
    return Plan("DropCov's transformers" if dropcov else "SoT", network, place, named=True)


def _check_head(hints: Hints, head: str) -> None:
    if hints.head not in (None, head):
        raise RefusedError(f"--head {hints.head}: keys and shapes are those of the head {head}")


def _sizes(row: TokenModel) -> tuple[bool, int, int, int]:
    """Whether it is DropCov's, channels, blocks, hidden channels of a block."""
    width, depth = row.network["embed_dim"], row.network["depth"]
    return row.options.get("normalization") == "none", width, depth, round(width * row.network["mlp_ratio"])


class Probed(NamedTuple):
    """A backbone of moment probing.

    Args:
        mark: how one of its keys begins, which no other's does.
        name: timm's name, from the shapes.
        renamings: of timm 0.6 or CLIP, to today's timm.
        options: of the pool.
        arguments: of the model.
        notes: of what the release does otherwise than timm.
    """

    mark: str
    name: Callable[[Shapes], str]
    renamings: tuple[Renaming, ...] = ()
    options: Mapping[str, Any] = {}
    arguments: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()


def _vit_name(shapes: Shapes, position: str = "pos_embed", patch: str = "patch_embed.proj", kind: str = "") -> str:
    positions, width = shapes[position][-2:]
    size = VITS[width, max(numbered(shapes, "blocks", "transformer.resblocks"))]
    side = shapes[f"{patch}.weight"][-1]
    return f"vit_{size}_patch{side}_{kind}{side * math.isqrt(positions - 1)}"


def _clip_name(shapes: Shapes) -> str:
    return _vit_name(shapes, "positional_embedding", "conv1", "clip_quickgelu_")


def _swin_name(shapes: Shapes) -> str:
    size = SWINS[shapes["patch_embed.proj.weight"][0], numbered(shapes, *(f"layers.{i}.blocks" for i in range(4)))]
    window = (math.isqrt(shapes["layers.0.blocks.0.attn.relative_position_bias_table"][0]) + 1) // 2
    return f"swin_{size}_patch4_window{window}_{PATCHES_OF_SWIN * window}"


def _convnext_name(shapes: Shapes) -> str:
    blocks = numbered(shapes, *(f"stages.{i}.blocks" for i in range(4)))
    return f"convnext_{CONVNEXTS[shapes['stem.proj.weight'][0], blocks]}"


IN_FRONT_OF_NORM = "the second moment is of features in front of the backbone's final norm, as in the release"
PROBED = (
    Probed(
        "transformer.resblocks.",
        _clip_name,
        (
            Renaming(r"^class_embedding$", "cls_token"),
            Renaming(r"^positional_embedding$", "pos_embed"),
            Renaming(r"^conv1\.", "patch_embed.proj."),
            Renaming(r"^ln_pre\.", "norm_pre."),
            Renaming(r"^ln_post\.", f"{POOL}.first_norm."),
            Renaming(r"^transformer\.resblocks\.", "blocks."),
            Renaming(r"\.ln_(\d)\.", r".norm\1."),
            Renaming(r"\.in_proj_", ".qkv."),
            Renaming(r"\.out_proj\.", ".proj."),
            Renaming(r"\.c_fc\.", ".fc1."),
            Renaming(r"\.c_proj\.", ".fc2."),
        ),
        dict(first_order="token", first_norm="positions"),
        dict(final_norm=False),
        (IN_FRONT_OF_NORM,),
    ),
    Probed("blocks.0.attn.", _vit_name, options=dict(first_order="token")),
    Probed(
        "layers.0.blocks.0.attn.",
        _swin_name,
        (
            Renaming(r"^layers\.(\d)\.downsample\.", lambda match: f"layers.{int(match[1]) + 1}.downsample."),
            Renaming(r"^norm\.", f"{POOL}.first_norm."),
        ),
        dict(first_norm="positions", skip_first=True, interleaved=False),
        dict(final_norm=False),
        (IN_FRONT_OF_NORM, "skip_first=True: the release takes the first position for a class token, which Swin lacks"),
    ),
    Probed(
        "stem.proj.",
        _convnext_name,
        (
            Renaming(r"^stem\.proj\.", "stem.0."),
            Renaming(r"^stem\.norm\.", "stem.1."),
            Renaming(r"\.downsample\.norm\.weight$", ".downsample.0.weight", change="unbiased"),
            Renaming(r"\.downsample\.norm\.", ".downsample.0."),
            Renaming(r"\.downsample\.proj\.", ".downsample.1."),
        ),
        dict(first_norm=True),
        dict(final_norm=False),
        (
            "the release's norms in front of the downsampling divide by the unbiased variance, here their weights are "
            "multiplied by √((C - 1) / C), for the same logits; without it they would differ by about 8e-4",
        ),
    ),
)
OF_PROBED_HEAD = (
    Renaming(r"^head\.(classifier1|cls_head\.fc)\.", "head.fc.", 0, "mean"),
    Renaming(r"^head\.classifier2\.", "head.fc.", 1, "mean"),
    Renaming(r"^head\.proj\.", f"{POOL}.reduction."),
    Renaming(r"^head\.ln\.", f"{POOL}.norm."),
    Renaming(r"^head\.cls_head\.norm\.", f"{POOL}.first_norm."),
    Renaming(r"^head\.downblocks\.0\.0\.", f"{POOL}.convolutions.0."),
    Renaming(r"^head\.downblocks\.0\.2\.", f"{POOL}.convolutions.1."),
)
BUFFERS_OF_SWIN = Dropped("a table that follows from the size of the windows, which timm makes itself")


def moment_probing(state: OriginalState, hints: Hints) -> Plan | None:
    """Moment probing (MP), and its MP+: a backbone of timm 0.6 or CLIP; the logits are the mean of two classifiers'."""
    prefix = "visual." if state.has("visual.head.downblocks.") else ""
    shapes = state.under(prefix)
    if not {"head.proj.weight", "head.downblocks.0.0.weight", "head.classifier2.weight"} <= shapes.keys():
        return None
    if any(".axial_shift." in key for key in shapes):
        raise RefusedError(f"{state.file_name}: moment probing of AS-MLP, a backbone that timm does not have")
    probed = next((row for row in PROBED if any(key.startswith(row.mark) for key in shapes)), None)
    try:
        name = "" if probed is None else probed.name(shapes)
    except LookupError:
        name = ""
    if probed is None or not timm.is_model(name):
        raise RefusedError(
            f"{state.file_name}: moment probing of a backbone that is none of timm's ViT, CLIP, Swin, ConvNeXt"
        )
    arguments = {**probed.arguments, **({"psrp": True} if any(PART_OF_PSRP in key for key in shapes) else {})}
    classes = shapes["head.classifier2.weight"][0]
    network = Network(name, classes, "moment", dict(probed.options), backbone_kwargs=arguments)
    _check_head(hints, "moment")
    renamings = (Renaming(f"^{re.escape(prefix)}", ""), *OF_PROBED_HEAD, *probed.renamings)
    tables = {r".*\.(relative_position_index|attn_mask)": BUFFERS_OF_SWIN}
    return Plan("Moment Probing", network, by_renaming(renamings), list(probed.notes), tables, named=True)

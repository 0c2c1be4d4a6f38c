"""The networks, our vision transformer and timm's: normalized pictures in, one logit per tag out.

Shape suffixes: B batch, C channels, Y and X patch rows and columns, T tokens (Y*X), D width,
H heads, K width of a head, N tags, S sites of stochastic depth.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

RELEASE_STEM = "conv:c=64;ln;relu;conv:c=128;ln;relu;conv:c=256;ln;relu;conv:c=512;ln;relu;conv:c=768,s=1,k=1,p=0"
MAX_IMAGE_SIZE = 4096  # pixels; far beyond any model, and small enough for memory


@dataclass(frozen=True)
class ViTConfig:
    """The architecture, in the words of a release's `config.json`.

    `image_size` is the side in pixels that the model was last trained at; with sine positions
    (`use_sine`) it runs at any multiple of `patch_size`. `cnn_stem` replaces the plain patch
    projection; its grammar is that of `CNNStem`. `layerscale_init` None chooses by depth.
    Raises ValueError, naming the field, for a combination that cannot be built.
    """

    n_tags: int
    image_size: int = 448
    num_blocks: int = 12
    patch_size: int = 16
    d_model: int = 768
    mlp_dim: int = 3072
    num_heads: int = 12
    stochdepth_rate: float = 0.05
    use_sine: bool = True
    layerscale_init: float | None = None
    head_mean_after: bool = False
    cnn_stem: str | None = RELEASE_STEM
    patch_dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("n_tags", "image_size", "num_blocks", "patch_size", "d_model", "mlp_dim", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not positive")
        for name in ("stochdepth_rate", "patch_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)} is not in [0, 1)")
        if self.image_size > MAX_IMAGE_SIZE:
            raise ValueError(f"image_size: {self.image_size} is more than {MAX_IMAGE_SIZE} pixels")
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide d_model {self.d_model}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size: {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.use_sine and self.d_model % 4:
            raise ValueError(f"d_model: {self.d_model} is not a multiple of 4, which sine positions need")
        if self.cnn_stem is not None:
            items = parse_stem(self.cnn_stem)
            convs = [options for kind, options in items if kind == "conv"]
            stride = 1
            for options in convs:
                stride *= options["s"]
            if not convs or convs[-1]["c"] != self.d_model:
                raise ValueError(f"cnn_stem: the last conv must have c={self.d_model} channels (d_model)")
            if stride != self.patch_size:
                raise ValueError(f"cnn_stem: its strides multiply to {stride}, not to patch_size {self.patch_size}")

    def build(self) -> ViT:
        """The model, with random weights."""
        return ViT(self)


@dataclass(frozen=True)
class TimmConfig:
    """A backbone of timm by its name there, such as `convnext_base`, under our head.

    `stochdepth_rate` is its `drop_path_rate`, which timm's models let grow from 0 to it over their depth.
    Raises ValueError, naming the field, for a name or an image size that cannot be built.
    """

    n_tags: int
    timm: str
    image_size: int = 448
    stochdepth_rate: float = 0.05
    patch_size = 16  # what its cost is like

    def __post_init__(self) -> None:
        import timm

        if self.n_tags < 1:
            raise ValueError(f"n_tags: {self.n_tags} is not positive")
        if not 0 <= self.stochdepth_rate < 1:
            raise ValueError(f"stochdepth_rate: {self.stochdepth_rate} is not in [0, 1)")
        if not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise ValueError(f"image_size: {self.image_size} is not between 1 and {MAX_IMAGE_SIZE} pixels")
        if not timm.is_model(self.timm):
            nearest = difflib.get_close_matches(self.timm, timm.list_models(), n=3)
            raise ValueError(f"timm: {self.timm!r} is no model there; nearest: {', '.join(nearest) or 'none'}")

    def build(self) -> TimmModel:
        """The model, with random weights."""
        return TimmModel(self)


def parse_stem(stem: str) -> list[tuple[str, dict[str, int]]]:
    """`conv:c=64,k=3;ln;relu` to `[("conv", {"c": 64, "k": 3, "s": 2, "p": 1}), ("ln", {}), ("relu", {})]`.

    Items are split by `;`. `conv` takes `c` (channels, required), `k` (kernel, 3), `s` (stride, 2) and
    `p` (padding, 1); `ln`, `bn`, `relu` and `gelu` take nothing. Raises ValueError on anything else.
    """
    items = []
    for item in stem.split(";"):
        kind, _, arguments = item.strip().partition(":")
        try:
            options = {key.strip(): int(value) for key, value in (a.split("=") for a in arguments.split(",") if a)}
        except ValueError:
            raise ValueError(f"cnn_stem: cannot read {item!r}; write it like conv:c=64,k=3,s=2,p=1") from None
        if kind == "conv" and "c" in options and options.keys() <= set("cksp"):
            items.append((kind, {"k": 3, "s": 2, "p": 1} | options))
        elif kind in ("ln", "bn", "relu", "gelu") and not options:
            items.append((kind, {}))
        else:
            raise ValueError(f"cnn_stem: unknown item {item!r}; use conv:c=64,k=3,s=2,p=1, ln, bn, relu or gelu")
    return items


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a [B, C, Y, X] map; free of copies when that is channels-last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BCYX: Tensor) -> Tensor:
        return self.norm(x_BCYX.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class CNNStem(nn.Module):
    """A few strided convolutions in place of one large patch projection (Xiao et al. 2021, arXiv:2106.14881)."""

    def __init__(self, stem: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for kind, options in parse_stem(stem):
            if kind == "conv":
                layers.append(nn.Conv2d(channels, options["c"], options["k"], options["s"], options["p"]))
                channels = options["c"]
            elif kind == "ln":
                layers.append(ChannelNorm(channels))
            elif kind == "bn":
                layers.append(nn.BatchNorm2d(channels))
            else:
                layers.append(nn.ReLU() if kind == "relu" else nn.GELU())
        self.conv = nn.Sequential(*layers)

    def forward(self, images_BCYX: Tensor) -> Tensor:
        return self.conv(images_BCYX)


def add_branch(
    base: Tensor, rate: float, noise_B: Tensor | None, branch: Callable[..., Tensor], *inputs: Any
) -> Tensor:
    """`base`, [B, T, D] or a bias [D], plus a branch of a network that stochastic depth may drop.

    It is dropped for a share `rate` of the samples, and rescaled for the others (Huang et al. 2016,
    arXiv:1603.09382). Which ones, `noise_B` tells, numbers between 0 and 1; without them nothing is dropped. A CPU
    does not compute what is dropped.
    """
    if noise_B is None:
        return base + branch(*inputs)
    kept_B, scale = noise_B >= rate, 1 / (1 - rate)
    partly = kept_B.device.type == "cpu" and not kept_B.all()  # elsewhere asking would mean to wait
    rows = kept_B.nonzero().squeeze(1) if partly else None
    added = branch(*(value if rows is None else value.index_select(0, rows) for value in inputs))
    base = base if base.dim() > 1 else base.to(added.dtype)
    if rows is not None:
        whole = base.to(torch.result_type(base, added)).expand(len(kept_B), *added.shape[1:])
        return whole.index_add(0, rows, added.to(whole.dtype), alpha=scale)
    if kept_B.device.type == "cpu":
        return torch.add(base, added, alpha=scale)
    return torch.addcmul(base, added, kept_B.to(added.dtype).view(-1, 1, 1), value=scale)


class LayerScale(nn.Module):
    """One learned factor per channel on a residual branch (Touvron et al. 2021, arXiv:2103.17239)."""

    def __init__(self, width: int, init: float) -> None:
        super().__init__()
        self.skip = nn.Parameter(torch.full((width,), init))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD * self.skip


class MLP(nn.Module):
    """Two linear layers around GELU; the hidden activations, too, are subject to stochastic depth."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.rate = config.stochdepth_rate
        self.linear1 = nn.Linear(config.d_model, config.mlp_dim)
        self.linear2 = nn.Linear(config.mlp_dim, config.d_model)

    def forward(self, x_BTD: Tensor, noise_B: Tensor | None = None) -> Tensor:
        if noise_B is None:
            return self.linear2(F.gelu(self.linear1(x_BTD)))
        return add_branch(self.linear2.bias, self.rate, noise_B, self._without_bias, x_BTD)

    def _without_bias(self, x_BTD: Tensor) -> Tensor:
        return F.linear(F.gelu(self.linear1(x_BTD)), self.linear2.weight)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then MLP, each on a scaled residual branch."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.d_model
        scale = config.layerscale_init
        if scale is None:  # deeper networks start closer to the identity (arXiv:2103.17239, section 2)
            scale = 0.1 if config.num_blocks <= 18 else 1e-5 if config.num_blocks <= 24 else 1e-6
        self.num_heads, self.rate = config.num_heads, config.stochdepth_rate
        self.norm1 = nn.LayerNorm(width)
        self.qkv_proj = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.skip_init1 = LayerScale(width, scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(config)
        self.skip_init2 = LayerScale(width, scale)

    def attention(self, x_BTD: Tensor) -> Tensor:
        qkv = self.qkv_proj(x_BTD).unflatten(-1, (3, self.num_heads, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK)
        return self.out_proj(out_BHTK.transpose(1, 2).flatten(2))

    def forward(
        self,
        x_BTD: Tensor,
        noise1_B: Tensor | None = None,
        noise2_B: Tensor | None = None,
        noise3_B: Tensor | None = None,
    ) -> Tensor:
        x_BTD = add_branch(x_BTD, self.rate, noise1_B, self._attend, x_BTD)
        return add_branch(x_BTD, self.rate, noise3_B, self._transform, x_BTD, noise2_B)

    def _attend(self, x_BTD: Tensor) -> Tensor:
        return self.skip_init1(self.attention(self.norm1(x_BTD)))

    def _transform(self, x_BTD: Tensor, noise_B: Tensor | None) -> Tensor:
        return self.skip_init2(self.mlp(self.norm2(x_BTD), noise_B))


def sine_positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Fixed 2-D sinusoids, float32 [rows * columns, width], row-major.

    A quarter of the width each for sin x, cos x, sin y, cos y, at frequencies
    10000 ** -(k / (width / 4 - 1)) (Vaswani et al. 2017, section 3.5, in two dimensions).
    """
    omega = 1e4 ** -torch.linspace(0, 1, width // 4, device=device)
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    angle_x, angle_y = x.reshape(-1, 1) * omega, y.reshape(-1, 1) * omega
    return torch.cat((angle_x.sin(), angle_x.cos(), angle_y.sin(), angle_y.cos()), dim=1)


class LearnedPositions(nn.Module):
    """One learned vector per patch, for a fixed image size."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)


class ViT(nn.Module):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) with a mean-pooled linear head."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.patch_embeddings: nn.Module
        if config.cnn_stem is None:
            self.patch_embeddings = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        else:
            self.patch_embeddings = CNNStem(config.cnn_stem)
        if not config.use_sine:
            self.pos_embedding = LearnedPositions((config.image_size // config.patch_size) ** 2, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, config.n_tags)
        self._positions: dict[tuple[int, int, torch.device], Tensor] = {}
        self._frozen: list[nn.Module] = []
        if not self.head.weight.is_meta:  # a model without storage has nothing to initialize
            self.apply(_initialize)

    def freeze(self, blocks: int) -> None:
        """Keep the stem, learned positions and the first `blocks` blocks as they are in training.

        Raises ValueError when there are not so many blocks.
        """
        if blocks > len(self.blocks):
            raise ValueError(f"model.freeze: {blocks} blocks, but the model has {len(self.blocks)}")
        self._frozen = [self.patch_embeddings, *self.blocks[:blocks]]
        for module in [*self._frozen, *([] if self.config.use_sine else [self.pos_embedding])]:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> ViT:
        """Set training or evaluation mode; what is frozen stays in evaluation mode, BatchNorm's statistics too."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def set_image_size(self, size: int) -> None:
        """Note the side in pixels that training goes on with; sine positions need nothing else."""
        self.config = replace(self.config, image_size=size)

    @property
    def noise_sites(self) -> int:
        """How many random numbers a sample needs in training, for stochastic depth."""
        return 3 * len(self.blocks) if self.config.stochdepth_rate else 0

    def tokens(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] float pictures to [B, T, D] normalized tokens.

        In training `noise_BS`, float [B, noise_sites] in [0, 1), decides which branches are dropped; without it
        they are drawn. Raises ValueError when the height or width is not a multiple of the patch size, or differs
        from `image_size` in a model with learned positions.
        """
        height, width = images_BCYX.shape[-2:]
        if height % self.config.patch_size or width % self.config.patch_size:
            raise ValueError(f"picture of {width}x{height}: not a multiple of patch size {self.config.patch_size}")
        x_BDYX = self.patch_embeddings(images_BCYX.to(memory_format=torch.channels_last))
        rows, columns = x_BDYX.shape[-2:]
        x_BTD = x_BDYX.flatten(2).transpose(1, 2)
        x_BTD = x_BTD + self.positions(rows, columns, x_BTD.device).to(x_BTD.dtype)
        if self.training and self.config.patch_dropout:
            x_BTD = drop_tokens(x_BTD, self.config.patch_dropout)
        if noise_BS is None:
            noise_BS = torch.rand(len(x_BTD), self.noise_sites if self.training else 0, device=x_BTD.device)
        noise_3B = noise_BS.T.split(3) if self.training and self.noise_sites else [()] * len(self.blocks)
        for block, noise in zip(self.blocks, noise_3B, strict=True):
            x_BTD = block(x_BTD, *noise) if block.training else block(x_BTD)
        return self.norm(x_BTD)

    def positions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """[T, D] float32 position vectors of a grid of patches."""
        if not self.config.use_sine:
            table: Tensor = self.pos_embedding.embedding.weight
            if rows * columns != len(table):
                raise ValueError(f"learned positions cover {len(table)} patches, not {rows}x{columns}")
            return table
        key = (rows, columns, device)
        if key not in self._positions:
            self._positions[key] = sine_positions(rows, columns, self.config.d_model, device)
        return self._positions[key]

    def embed(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] float pictures to [B, D] mean-pooled embeddings; `noise_BS` as for `tokens`."""
        return self.tokens(images_BCYX, noise_BS).mean(dim=1)

    def forward(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] normalized float pictures to [B, N] logits; `noise_BS` as for `tokens`."""
        if self.config.head_mean_after:
            return self.head(self.tokens(images_BCYX, noise_BS)).mean(dim=1)
        return self.head(self.embed(images_BCYX, noise_BS))


class TimmModel(nn.Module):
    """A backbone of timm (github.com/huggingface/pytorch-image-models), and a linear head on its pooled features."""

    noise_sites = 0  # its stochastic depth draws for itself, from torch's global generator

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = _backbone(config)
        self.head = nn.Linear(cast(int, self.backbone.head_hidden_size), config.n_tags)
        if not self.head.weight.is_meta:
            _initialize(self.head)

    def freeze(self, blocks: int) -> None:
        """Raises ValueError: what a block is, only our own model says."""
        raise ValueError("model.freeze: not for a timm backbone; use optimizer.layer_decay")

    def set_image_size(self, size: int) -> None:
        """Note the side in pixels that training goes on with, which not every backbone can."""
        self.config = replace(self.config, image_size=size)

    def embed(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] float pictures to [B, D] pooled features; `noise_BS` is of no use here."""
        return self.backbone(images_BCYX.to(memory_format=torch.channels_last))

    def forward(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] normalized float pictures to [B, N] logits."""
        return self.head(self.embed(images_BCYX))


def _backbone(config: TimmConfig) -> nn.Module:
    """The backbone without a classifier. Raises ValueError when it does not take pictures of the image size."""
    import timm

    side = config.image_size
    sizes: list[dict[str, Any]] = [{"dynamic_img_size": True}, {}, {"img_size": side}]
    depths: list[dict[str, Any]] = [{"drop_path_rate": config.stochdepth_rate}, {}]
    for size, depth in itertools.product(sizes, depths):  # not every model takes every option
        create = partial(timm.create_model, config.timm, pretrained=False, num_classes=0, **size, **depth)
        try:
            with torch.device("meta"):
                create().eval()(torch.empty(1, 3, side, side))
        except (TypeError, ValueError, AssertionError, RuntimeError):  # whatever it has against options or size
            continue
        return create()
    raise ValueError(f"image_size: {config.timm} does not take pictures of {side} pixels")


Config = ViTConfig | TimmConfig
Model = ViT | TimmModel


def drop_tokens(x_BTD: Tensor, rate: float) -> Tensor:
    """Keep a random share of `1 - rate` of each sample's tokens (Liu et al. 2022, arXiv:2208.07220)."""
    batch, tokens, width = x_BTD.shape
    kept = max(1, round(tokens * (1 - rate)))
    order = torch.rand(batch, tokens, device=x_BTD.device).argsort(dim=1)[:, :kept]
    return x_BTD.gather(1, order.unsqueeze(-1).expand(-1, -1, width))


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02)


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(p.numel() for p in model.parameters())


def training_flop(config: Config, image_size: int) -> int:
    """Floating-point operations (two to a multiply-add) of forward and backward for one picture.

    Counted by torch's FlopCounterMode on the meta device, so nothing is allocated or computed.
    """
    with torch.device("meta"):
        model = config.build().eval()
        images = torch.empty(1, 3, image_size, image_size)
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    return counter.get_total_flops()

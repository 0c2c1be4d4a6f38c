"""The vision transformer: normalized images in, one logit per tag out.

Shape suffixes: B batch, C channels, Y and X patch rows and columns, T tokens (Y*X), D width,
H heads, K width of a head, N tags, S sites of stochastic depth.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from joytag.models.stem import RELEASE_STEM, CNNStem, check_stem

MAX_IMAGE_SIZE = 4096  # pixels; far beyond any model, and small enough for memory


@dataclass(frozen=True)
class ViTOptions:
    """The part of `ViTConfig` that a run's settings choose; n_tags and image_size come from data and stages."""

    num_blocks: Annotated[int, Field(description="Transformer blocks.")] = 12
    patch_size: Annotated[int, Field(description="Side of a patch, pixels.")] = 16
    d_model: Annotated[int, Field(description="Width of the tokens.")] = 768
    mlp_dim: Annotated[int, Field(description="Width of the hidden layer of each block's MLP.")] = 3072
    num_heads: Annotated[int, Field(description="Attention heads; must divide d_model.")] = 12
    stochdepth_rate: Annotated[
        float, Field(description="Share of samples for which stochastic depth drops a branch, in [0, 1).")
    ] = 0.05
    use_sine: Annotated[
        bool, Field(description="Fixed sine positions, which fit any image size; false: learned ones, for one size.")
    ] = True
    layerscale_init: Annotated[
        float | None, Field(description="Initial factor of each residual branch; null chooses by num_blocks.")
    ] = None
    head_mean_after: Annotated[
        bool, Field(description="Average the tokens' logits instead of the tokens; same values, more work.")
    ] = False
    cnn_stem: Annotated[
        str | None,
        Field(description="Convolutions that turn pixels into tokens, see `stem.ITEMS`; null: one patch projection."),
    ] = RELEASE_STEM
    patch_dropout: Annotated[float, Field(description="Share of tokens dropped in training, in [0, 1).")] = 0.0


@dataclass(frozen=True)
class _DataOptions:
    """The part of `ViTConfig` that the dataset and the stages of a run determine."""

    n_tags: int
    image_size: int = 448


@dataclass(frozen=True)
class ViTConfig(ViTOptions, _DataOptions):  # in this order `_DataOptions` gives the first keys of config.json
    """The architecture, with the names of a release's `config.json`.

    `image_size` is the side in pixels that the model was last trained at; with sine positions it runs at any multiple
    of `patch_size`. Raises ValueError, naming the field, for a combination that cannot be built.
    """

    # What readers of a release assume for keys that config.json lacks.
    ASSUMED: ClassVar[dict[str, Any]] = {
        "layerscale_init": None,
        "head_mean_after": False,
        "cnn_stem": None,
        "patch_dropout": 0.0,
    }

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
            check_stem(self.cnn_stem, self.d_model, self.patch_size)

    def build(self) -> ViT:
        """Build the model, with random weights."""
        return ViT(self)

    def check_tensors(self, names: Collection[str]) -> None:
        """Compare the number of blocks with a file's tensor names, before a model of perhaps a billion blocks is built.

        Raises ValueError when the numbers differ.
        """
        blocks = len({name.split(".")[1] for name in names if name.startswith("blocks.")})
        if blocks != self.num_blocks:
            raise ValueError(f"holds {blocks} blocks, but config.json's num_blocks is {self.num_blocks}")


def add_branch(
    base: Tensor, rate: float, noise_B: Tensor | None, branch: Callable[..., Tensor], *inputs: Any
) -> Tensor:
    """Add a network's branch to `base`, [B, T, D] or a bias [D], with stochastic depth.

    The branch is dropped for samples whose `noise_B`, in [0, 1), is below `rate`, and rescaled for the others (Huang et
    al. 2016, arXiv:1603.09382). Without noise nothing is dropped. On a CPU dropped samples are not computed.
    """
    if noise_B is None:
        return base + branch(*inputs)
    kept_B, scale = noise_B >= rate, 1 / (1 - rate)
    partly = kept_B.device.type == "cpu" and not kept_B.all()  # on a GPU this check would wait for the device
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
        """[B, T, D] to the same shape."""
        return x_BTD * self.skip


class MLP(nn.Module):
    """Two linear layers around GELU; stochastic depth drops the hidden activations, too."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.rate = config.stochdepth_rate
        self.linear1 = nn.Linear(config.d_model, config.mlp_dim)
        self.linear2 = nn.Linear(config.mlp_dim, config.d_model)

    def forward(self, x_BTD: Tensor, noise_B: Tensor | None = None) -> Tensor:
        """[B, T, D] to the same shape; `noise_B` as for `add_branch`."""
        if noise_B is None:
            return self.linear2(F.gelu(self.linear1(x_BTD)))
        return add_branch(self.linear2.bias, self.rate, noise_B, self._without_bias, x_BTD)

    def _without_bias(self, x_BTD: Tensor) -> Tensor:
        return F.linear(F.gelu(self.linear1(x_BTD)), self.linear2.weight)


class Block(nn.Module):
    """A pre-norm transformer block: attention, then MLP, each on a scaled residual branch."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor] = staticmethod(F.scaled_dot_product_attention)

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
        """Multi-head self-attention, [B, T, D] to the same shape."""
        qkv = self.qkv_proj(x_BTD).unflatten(-1, (3, self.num_heads, -1))
        q_BHTK, k_BHTK, v_BHTK = qkv.permute(2, 0, 3, 1, 4)
        out_BHTK = self.attend(q_BHTK, k_BHTK, v_BHTK)
        return self.out_proj(out_BHTK.transpose(1, 2).flatten(2))

    def forward(
        self,
        x_BTD: Tensor,
        noise1_B: Tensor | None = None,
        noise2_B: Tensor | None = None,
        noise3_B: Tensor | None = None,
    ) -> Tensor:
        """[B, T, D] to the same shape; the noise is for attention, hidden activations and MLP, see `add_branch`."""
        x_BTD = add_branch(x_BTD, self.rate, noise1_B, self._attend, x_BTD)
        return add_branch(x_BTD, self.rate, noise3_B, self._transform, x_BTD, noise2_B)

    def _attend(self, x_BTD: Tensor) -> Tensor:
        return self.skip_init1(self.attention(self.norm1(x_BTD)))

    def _transform(self, x_BTD: Tensor, noise_B: Tensor | None) -> Tensor:
        return self.skip_init2(self.mlp(self.norm2(x_BTD), noise_B))


def sine_positions(rows: int, columns: int, width: int, device: torch.device) -> Tensor:
    """Return fixed 2-D sinusoids, float32 [rows * columns, width], row-major.

    Sin x, cos x, sin y and cos y take a quarter of the width each, at frequencies 10000 ** -(k / (width / 4 - 1))
    (Vaswani et al. 2017, section 3.5, extended to two dimensions).
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

    state_is_complete = True  # its state_dict holds all its tensors

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

    def freeze(self, blocks: int) -> None:
        """Exclude the stem, learned positions and the first `blocks` blocks from training.

        Raises ValueError when the model has fewer blocks.
        """
        if blocks > len(self.blocks):
            raise ValueError(f"model.freeze: {blocks} blocks, but the model has {len(self.blocks)}")
        self._frozen = [self.patch_embeddings, *self.blocks[:blocks]]
        for module in [*self._frozen, *([] if self.config.use_sine else [self.pos_embedding])]:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> ViT:
        """Set training or evaluation mode; frozen modules, with BatchNorm's statistics, stay in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    @property
    def parts(self) -> list[nn.Module]:
        """The modules that torch.compile compiles one by one."""
        return [self.patch_embeddings, *self.blocks]

    def layer_groups(self, decay: float) -> list[dict[str, Any]]:
        """Group the trainable parameters by layer, each group with `lr_scale`, its factor of the learning rate.

        The factor is 1 for the head and the last norm. From the last block to the first, then the stem and learned
        positions, each layer has `decay` times the factor of the one after it (Clark et al. 2020, arXiv:2003.10555,
        table 7).
        """
        layers = [[self.head, self.norm], *([block] for block in reversed(self.blocks)), [self.patch_embeddings]]
        if not self.config.use_sine:
            layers[-1].append(self.pos_embedding)
        groups = []
        for depth, modules in enumerate(layers):
            parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
            if parameters:
                groups.append({"params": parameters, "lr_scale": decay**depth})
        return groups

    def set_image_size(self, size: int) -> None:
        """Change the image size in pixels, for training; sine positions adapt to it."""
        self.config = replace(self.config, image_size=size)

    @property
    def noise_sites(self) -> int:
        """Number of random numbers that stochastic depth needs for each sample in training."""
        return 3 * len(self.blocks) if self.config.stochdepth_rate else 0

    def tokens(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] normalized float images to [B, T, D] normalized tokens.

        In training `noise_BS`, float [B, noise_sites] in [0, 1), decides which branches are dropped; it is drawn when
        it is missing. Raises ValueError when the height or width is not a multiple of the patch size, or differs
        from `image_size` in a model with learned positions.
        """
        height, width = images_BCYX.shape[-2:]
        if height % self.config.patch_size or width % self.config.patch_size:
            raise ValueError(f"image of {width}x{height}: not a multiple of patch size {self.config.patch_size}")
        x_BDYX = self.patch_embeddings(images_BCYX.to(memory_format=torch.channels_last))
        rows, columns = x_BDYX.shape[-2:]
        x_BTD = x_BDYX.flatten(2).transpose(1, 2)
        x_BTD = x_BTD + self.positions(rows, columns, x_BTD.device).to(x_BTD.dtype)
        if self.training and self.config.patch_dropout:
            x_BTD = drop_tokens(x_BTD, self.config.patch_dropout)
        noise_3B: Sequence[Iterable[Tensor]] = [()] * len(self.blocks)
        if self.training and self.noise_sites:
            if noise_BS is None:
                noise_BS = torch.rand(len(x_BTD), self.noise_sites, device=x_BTD.device)
            noise_3B = noise_BS.T.split(3)
        for block, noise in zip(self.blocks, noise_3B, strict=True):
            x_BTD = block(x_BTD, *noise) if block.training else block(x_BTD)
        return self.norm(x_BTD)

    def positions(self, rows: int, columns: int, device: torch.device) -> Tensor:
        """Return the position vectors of a grid of patches, float32 [T, D]."""
        if not self.config.use_sine:
            table: Tensor = self.pos_embedding.embedding.weight
            if rows * columns != len(table):
                raise ValueError(f"learned positions cover {len(table)} patches, not {rows}x{columns}")
            return table
        if torch.compiler.is_exporting():  # sizes may be symbols, and tensors have no values to keep
            return sine_positions(rows, columns, self.config.d_model, device)
        key = (int(rows), int(columns), device)  # tracing for ONNX counts in tensors
        if key not in self._positions:
            self._positions[key] = sine_positions(*key[:2], self.config.d_model, device)
        return self._positions[key]

    def embed(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] float images to [B, D] mean-pooled embeddings; `noise_BS` as for `tokens`."""
        return self.tokens(images_BCYX, noise_BS).mean(dim=1)

    def evidence(self, images_BCYX: Tensor, tags: Sequence[int]) -> Tensor:
        """[B, 3, height, width] normalized float images to [B, len(tags), rows, columns]: what each patch adds.

        A logit is the mean of the head's output over the patches, so these numbers, float32 in units of the logit, sum
        to it, without any gradient. In evaluation mode only; raises ValueError as `tokens` does.
        """
        tokens_BTD, index = self.tokens(images_BCYX), torch.as_tensor(tags, device=images_BCYX.device)
        with torch.autocast(images_BCYX.device.type, enabled=False):
            logits_BTN = F.linear(tokens_BTD.float(), self.head.weight[index].float(), self.head.bias[index].float())
        columns = images_BCYX.shape[-1] // self.config.patch_size
        return (logits_BTN / logits_BTN.shape[1]).transpose(1, 2).unflatten(2, (-1, columns))

    def forward(self, images_BCYX: Tensor, noise_BS: Tensor | None = None) -> Tensor:
        """[B, 3, height, width] normalized float images to [B, N] logits; `noise_BS` as for `tokens`."""
        if self.config.head_mean_after:
            return self.head(self.tokens(images_BCYX, noise_BS)).mean(dim=1)
        return self.head(self.embed(images_BCYX, noise_BS))


def drop_tokens(x_BTD: Tensor, rate: float) -> Tensor:
    """Keep a random fraction `1 - rate` of each sample's tokens (Liu et al. 2022, arXiv:2208.07220)."""
    batch, tokens, width = x_BTD.shape
    kept = max(1, round(tokens * (1 - rate)))
    order = torch.rand(batch, tokens, device=x_BTD.device).argsort(dim=1)[:, :kept]
    return x_BTD.gather(1, order.unsqueeze(-1).expand(-1, -1, width))

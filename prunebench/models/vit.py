"""Vision transformer for small images."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunebench.core.units import Junction, PrunableModel, Unit
from prunebench.models.layers import layer_entries, resolve_widths


class Attention(nn.Module):
    """Multi-head self-attention; query, key, value and output projections are plain `nn.Linear` modules.

    Args:
      dim: size of a token.
      heads: number of heads.
      head_dim: size of a head's query, key and value; stays when heads are pruned.
    """

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.q = nn.Linear(dim, heads * head_dim)
        self.k = nn.Linear(dim, heads * head_dim)
        self.v = nn.Linear(dim, heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, dim] -> [N, tokens, dim]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Linear, GELU, linear, applied to every token.

    Args:
      dim: size of a token.
      hidden: neurons between the layers.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, dim] -> [N, tokens, dim]."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each added to its input.

    Args:
      dim: size of a token.
      heads: attention heads.
      head_dim: size of a head.
      hidden: neurons of the MLP.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads, head_dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, dim] -> [N, tokens, dim]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(PrunableModel):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929, section 3.1) for small images.

    The defaults are ViT-Ti's sizes (arXiv 2012.12877, table 1) on 4x4 patches: 5,362,762 parameters at
    32x32x3 and 10 classes. Class token and learned positions; no dropout. Linear and patch weights start from
    a truncated N(0, 0.02^2) with zero biases.

    Units are the attention heads (`blocks.0.attn`; rows of q, k and v) and the MLP neurons (`blocks.0.mlp`).
    The token stream is no unit: LayerNorm mixes its entries, so that a narrower one is another function.

    Args:
      dim: size of a token, a multiple of `heads`.
      depth: number of blocks.
      heads: attention heads per block.
      mlp_ratio: neurons of the MLP as a multiple of `dim`.
      patch: side of a patch in pixels; must divide the image side.
      widths: unit name -> heads or neurons; those left out keep `heads` and `mlp_ratio * dim`.
      in_channels, num_classes, image_size: of the data; images are square.

    Raises:
      ValueError: if an option is out of range, `patch` does not divide the image or `widths` does not fit.
    """

    head = "classifier"

    def __init__(
        self,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        patch: int = 4,
        widths: dict[str, int] | None = None,
        *,
        in_channels: int,
        num_classes: int,
        image_size: int,
    ):
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")
        if heads < 1 or dim < 1 or dim % heads:
            raise ValueError(f"heads={heads}: must divide dim={dim}")
        if int(dim * mlp_ratio) < 1:
            raise ValueError(f"mlp_ratio={mlp_ratio}: must give at least one neuron with dim={dim}")
        if patch < 1 or image_size % patch:
            fits = [p for p in range(1, image_size + 1) if image_size % p == 0]
            raise ValueError(
                f"patch={patch}: must divide the image side {image_size}; choose model.patch from "
                f"{', '.join(map(str, fits))} or another dataset.size"
            )
        self.dim, self.depth, self.heads, self.mlp_ratio, self.patch = dim, depth, heads, mlp_ratio, patch
        self.in_channels, self.num_classes, self.image_size = in_channels, num_classes, image_size
        default = {}
        for i in range(depth):
            default |= {f"blocks.{i}.attn": heads, f"blocks.{i}.mlp": int(dim * mlp_ratio)}
        self.widths = w = resolve_widths(default, widths)

        self.patch_embed = nn.Conv2d(in_channels, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (image_size // patch) ** 2, dim))
        self.blocks = nn.Sequential(
            *(Block(dim, w[f"blocks.{i}.attn"], dim // heads, w[f"blocks.{i}.mlp"]) for i in range(depth))
        )
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.classifier = nn.Linear(dim, num_classes)

        nn.init.normal_(self.cls_token, std=1e-6)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, image_size, image_size] -> logits [N, num_classes]."""
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.classifier(self.norm(self.blocks(x))[:, 0])

    def units(self) -> list[Unit]:
        """Attention heads (head_dim consecutive rows of q, k and v each) and MLP neurons of every block."""
        units = []
        for i in range(self.depth):
            attn, mlp = f"blocks.{i}.attn", f"blocks.{i}.mlp"
            rows = layer_entries(f"{attn}.q") + layer_entries(f"{attn}.k") + layer_entries(f"{attn}.v")
            units.append(Unit(attn, self.widths[attn], rows, ((f"{attn}.proj.weight", 1),)))
            units.append(
                Unit(mlp, self.widths[mlp], layer_entries(f"{mlp}.fc1"), ((f"{mlp}.fc2.weight", 1),))
            )
        return units

    def junctions(self) -> list[Junction]:
        """Not available: attention multiplies layers with each other, LayerNorm mixes the stream's channels.

        Raises:
          ValueError: always.
        """
        raise ValueError("the layers of a ViT are no neighbours channel by channel, attention lies between")

    def with_widths(self, widths: Mapping[str, int]) -> "ViT":
        """Fresh network with other heads and neurons; units left out keep theirs."""
        return ViT(
            dim=self.dim,
            depth=self.depth,
            heads=self.heads,
            mlp_ratio=self.mlp_ratio,
            patch=self.patch,
            widths=self.widths | dict(widths),
            in_channels=self.in_channels,
            num_classes=self.num_classes,
            image_size=self.image_size,
        )

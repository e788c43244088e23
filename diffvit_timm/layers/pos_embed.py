"""Two-dimensional position embeddings, in the place of timm's table of one vector a patch.

`Dosovitskiy et al. 2021` - https://arxiv.org/abs/2010.11929, appendix D.4 (learned, a half of the width each axis)
`Vaswani et al. 2017` - https://arxiv.org/abs/1706.03762, section 3.5, on two axes as in MAE (sin-cos)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["POS_EMBEDS", "POS_EMBEDS_2D", "Learned2d", "PosEmbed2d", "SinCos2d", "resample_axis"]


class PosEmbed2d(nn.Module):
    """Adds the places to the patches, the last step of a PatchEmbed."""

    def __init__(self, grid: tuple[int, int], flat: bool) -> None:
        """
        Args:
            grid: rows and columns of patches.
            flat: whether patches come as (B, N, dim), all on the grid; or else as (B, H, W, dim).
        """
        super().__init__()
        self.grid = grid
        self.flat = flat

    def set_grid(self, grid: tuple[int, int]) -> None:
        raise NotImplementedError

    def table(self) -> Tensor:
        """(1, N, dim), of the grid, row by row."""
        raise NotImplementedError

    def table_of(self, height: int, width: int) -> Tensor:
        """(1, height * width, dim), of another grid."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) on the grid, or (B, H, W, dim) on any, with their places added."""
        if self.flat:
            return x + self.table()
        height, width = x.shape[1], x.shape[2]
        return x + self.table_of(height, width).reshape(1, height, width, x.shape[3])


class Learned2d(PosEmbed2d):
    """A learned vector a row and one a column, each of half the width: their concatenation is a patch's."""

    def __init__(self, grid: tuple[int, int], dim: int, flat: bool = True, device=None, dtype=None) -> None:
        """
        Args:
            grid, flat: as in PosEmbed2d.
            dim: width of the tokens.

        Raises:
            ValueError: an odd width.
        """
        super().__init__(grid, flat)
        if dim % 2:
            raise ValueError(f"pos_embed='learn_2d' halves the width: embed_dim={dim} must be even")
        self.rows = nn.Parameter(torch.empty(1, grid[0], dim // 2, device=device, dtype=dtype))
        self.columns = nn.Parameter(torch.empty(1, grid[1], dim // 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As timm initialises its table."""
        for axis in (self.rows, self.columns):
            nn.init.trunc_normal_(axis, std=0.02)

    @torch.jit.ignore
    def set_grid(self, grid: tuple[int, int]) -> None:
        """Resample both axes, linearly."""
        self.grid = grid
        self.rows = nn.Parameter(resample_axis(self.rows.detach(), grid[0]), self.rows.requires_grad)
        self.columns = nn.Parameter(resample_axis(self.columns.detach(), grid[1]), self.columns.requires_grad)

    def table(self) -> Tensor:
        return self._table(self.rows, self.columns)

    def table_of(self, height: int, width: int) -> Tensor:
        return self._table(resample_axis(self.rows, height), resample_axis(self.columns, width))

    def _table(self, rows: Tensor, columns: Tensor) -> Tensor:
        height, width = rows.shape[1], columns.shape[1]
        rows, columns = rows[:, :, None].expand(-1, -1, width, -1), columns[:, None].expand(-1, height, -1, -1)
        return torch.cat([rows, columns], dim=-1).flatten(1, 2)


class SinCos2d(PosEmbed2d):
    """Sines and cosines of the row and the column, fixed; on another grid, those of the same places of the image."""

    origin: Tensor
    fixed: Tensor

    def __init__(self, grid: tuple[int, int], dim: int, flat: bool = True, device=None, dtype=None) -> None:
        """
        Args:
            grid, flat: as in PosEmbed2d.
            dim: width of the tokens.

        Raises:
            ValueError: a width that four does not divide.
        """
        super().__init__(grid, flat)
        if dim % 4:
            raise ValueError(f"pos_embed='sincos' needs a width that 4 divides, not embed_dim={dim}")
        self.dim = dim
        # the grid whose rows and columns are counted; in the state dict, as nothing else there tells it
        self.register_buffer("origin", torch.empty(2, device=device, dtype=torch.float32))
        self.register_buffer("fixed", torch.empty(1, grid[0] * grid[1], dim, device=device, dtype=dtype), False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Count the rows and columns of the grid that there is."""
        self.origin.copy_(torch.tensor(self.grid))
        self.init_non_persistent_buffers()

    @torch.jit.ignore
    def init_non_persistent_buffers(self) -> None:
        """timm's hook: fill what no checkpoint brings, after loading onto the meta device."""
        self.fixed.copy_(self.table_of(self.grid[0], self.grid[1]))

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self.init_non_persistent_buffers()

    @torch.jit.ignore
    def set_grid(self, grid: tuple[int, int]) -> None:
        """Compute the table of another grid."""
        self.grid = grid
        self.fixed = self.fixed.new_empty(1, grid[0] * grid[1], self.dim)
        self.init_non_persistent_buffers()

    def table(self) -> Tensor:
        return self.fixed

    def table_of(self, height: int, width: int) -> Tensor:
        """As timm's build_sincos2d_pos_embed on the origin, whose coordinates the centres of other patches have."""
        steps = torch.arange(self.dim // 4, device=self.fixed.device, dtype=torch.float32)
        bands = 1.0 / 10000.0 ** (steps / (self.dim // 4))
        rows = (self._coordinates(height, 0)[:, None] * bands)[:, None].expand(-1, width, -1)
        columns = (self._coordinates(width, 1)[:, None] * bands)[None].expand(height, -1, -1)
        table = torch.cat([rows.sin(), columns.sin(), rows.cos(), columns.cos()], dim=-1)
        return table.flatten(0, 1)[None].to(self.fixed.dtype)

    def _coordinates(self, length: int, axis: int) -> Tensor:
        centres = torch.arange(length, device=self.fixed.device, dtype=torch.float32) + 0.5
        return centres * (self.origin[axis].float() / length) - 0.5


def resample_axis(axis: Tensor, length: int) -> Tensor:
    """(1, n, d) to (1, length, d), linearly."""
    return F.interpolate(axis.transpose(1, 2), size=length, mode="linear", antialias=False).transpose(1, 2).contiguous()


POS_EMBEDS_2D = {"learn_2d": Learned2d, "sincos": SinCos2d}
POS_EMBEDS = ("learn", "none", *POS_EMBEDS_2D)

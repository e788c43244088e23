"""Two-dimensional position embeddings. They replace timm's table, which has one vector per patch.

Learned: `Dosovitskiy et al. 2021` - https://arxiv.org/abs/2010.11929, appendix D.4 (half of the width for each axis)
Sine-cosine: `Vaswani et al. 2017` - https://arxiv.org/abs/1706.03762, section 3.5, for two axes as in MAE
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["POS_EMBEDS", "POS_EMBEDS_2D", "Learned2d", "PosEmbed2d", "SinCos2d", "resample_axis"]


class PosEmbed2d(nn.Module):
    """Base class: adds a position embedding to the patches, as the last step of a PatchEmbed."""

    def __init__(self, grid: tuple[int, int], flat: bool) -> None:
        """
        Args:
            grid: number of rows and columns of patches.
            flat: whether the patches are (B, N, dim), with N patches on this grid. Otherwise they are (B, H, W, dim),
                on a grid of any size.
        """
        super().__init__()
        self.grid = grid
        self.flat = flat

    def set_grid(self, grid: tuple[int, int]) -> None:
        """Change the grid, and the embeddings with it."""
        raise NotImplementedError

    def table(self) -> Tensor:
        """Return the embeddings of the grid, (1, N, dim), row by row."""
        raise NotImplementedError

    def table_for(self, height: int, width: int) -> Tensor:
        """Compute the embeddings of another grid, (1, height * width, dim), row by row."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Add the embeddings to the patches x, (B, N, dim) on the grid if flat, or else (B, H, W, dim) on any grid."""
        if self.flat:
            return x + self.table()
        height, width = x.shape[1], x.shape[2]
        return x + self.table_for(height, width).reshape(1, height, width, x.shape[3])


class Learned2d(PosEmbed2d):
    """Learned embedding with one vector per row and one per column of the grid.

    Each vector has half the width of the tokens. A patch gets the vector of its row followed by that of its column.
    """

    def __init__(self, grid: tuple[int, int], dim: int, flat: bool = True, device=None, dtype=None) -> None:
        """
        Args:
            grid, flat: as in `PosEmbed2d`.
            dim: width of the tokens.

        Raises:
            ValueError: an odd width.
        """
        super().__init__(grid, flat)
        if dim % 2:
            raise ValueError(f"pos_embed='learn_2d' needs an even width: change embed_dim={dim}")
        self.rows = nn.Parameter(torch.empty(1, grid[0], dim // 2, device=device, dtype=dtype))
        self.columns = nn.Parameter(torch.empty(1, grid[1], dim // 2, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the vectors as timm initialises its table."""
        for axis in (self.rows, self.columns):
            nn.init.trunc_normal_(axis, std=0.02)

    @torch.jit.ignore
    def set_grid(self, grid: tuple[int, int]) -> None:
        """Change the grid and resample both axes linearly."""
        self.grid = grid
        self.rows = nn.Parameter(resample_axis(self.rows.detach(), grid[0]), self.rows.requires_grad)
        self.columns = nn.Parameter(resample_axis(self.columns.detach(), grid[1]), self.columns.requires_grad)

    def table(self) -> Tensor:
        return self._table(self.rows, self.columns)

    def table_for(self, height: int, width: int) -> Tensor:
        return self._table(resample_axis(self.rows, height), resample_axis(self.columns, width))

    def _table(self, rows: Tensor, columns: Tensor) -> Tensor:
        height, width = rows.shape[1], columns.shape[1]
        rows = rows[:, :, None].expand(-1, -1, width, -1)  # (1, height, width, dim / 2)
        columns = columns[:, None].expand(-1, height, -1, -1)  # (1, height, width, dim / 2)
        return torch.cat([rows, columns], dim=-1).flatten(1, 2)  # (1, height * width, dim)


class SinCos2d(PosEmbed2d):
    """Fixed embedding: sines and cosines of the row and the column.

    On another grid a patch gets the embedding of the same place in the image.
    """

    origin: Tensor
    fixed: Tensor

    def __init__(self, grid: tuple[int, int], dim: int, flat: bool = True, device=None, dtype=None) -> None:
        """
        Args:
            grid, flat: as in `PosEmbed2d`.
            dim: width of the tokens.

        Raises:
            ValueError: a width that is not a multiple of 4.
        """
        super().__init__(grid, flat)
        if dim % 4:
            raise ValueError(f"pos_embed='sincos' needs a width that is a multiple of 4: change embed_dim={dim}")
        self.dim = dim
        # The coordinates of a patch are its row and column on this grid. It is saved because nothing else in the state
        # dict reveals it.
        self.register_buffer("origin", torch.empty(2, device=device, dtype=torch.float32))
        self.register_buffer("fixed", torch.empty(1, grid[0] * grid[1], dim, device=device, dtype=dtype), False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Take the rows and columns of the current grid as coordinates."""
        self.origin.copy_(torch.tensor(self.grid))
        self.init_non_persistent_buffers()

    @torch.jit.ignore
    def init_non_persistent_buffers(self) -> None:
        """Fill the buffers that no checkpoint contains. timm calls this hook on a model made on the meta device."""
        self.fixed.copy_(self.table_for(self.grid[0], self.grid[1]))

    def _load_from_state_dict(self, *args) -> None:
        super()._load_from_state_dict(*args)
        self.init_non_persistent_buffers()

    @torch.jit.ignore
    def set_grid(self, grid: tuple[int, int]) -> None:
        """Change the grid and compute its embeddings."""
        self.grid = grid
        self.fixed = self.fixed.new_empty(1, grid[0] * grid[1], self.dim)
        self.init_non_persistent_buffers()

    def table(self) -> Tensor:
        return self.fixed

    def table_for(self, height: int, width: int) -> Tensor:
        """Compute the embeddings of another grid, (1, height * width, dim), row by row.

        On the grid `origin` they are those of timm's build_sincos2d_pos_embed. On other grids the centre of each patch
        has the coordinates of its place on `origin`.
        """
        steps = torch.arange(self.dim // 4, device=self.fixed.device, dtype=torch.float32)
        frequencies = 1.0 / 10000.0 ** (steps / (self.dim // 4))  # (dim / 4,)
        # The angles, (height, width, dim / 4).
        rows = (self._coordinates(height, 0)[:, None] * frequencies)[:, None].expand(-1, width, -1)
        columns = (self._coordinates(width, 1)[:, None] * frequencies)[None].expand(height, -1, -1)
        table = torch.cat([rows.sin(), columns.sin(), rows.cos(), columns.cos()], dim=-1)  # (height, width, dim)
        return table.flatten(0, 1)[None].to(self.fixed.dtype)

    def _coordinates(self, length: int, axis: int) -> Tensor:
        """Coordinates, (length,), on the grid `origin` of the patch centres along an axis with `length` patches."""
        centres = torch.arange(length, device=self.fixed.device, dtype=torch.float32) + 0.5
        return centres * (self.origin[axis].float() / length) - 0.5


def resample_axis(axis: Tensor, length: int) -> Tensor:
    """Resample the vectors of an axis linearly, from (1, n, d) to (1, length, d)."""
    return F.interpolate(axis.transpose(1, 2), size=length, mode="linear", antialias=False).transpose(1, 2).contiguous()


POS_EMBEDS_2D = {"learn_2d": Learned2d, "sincos": SinCos2d}
POS_EMBEDS = ("learn", "none", *POS_EMBEDS_2D)

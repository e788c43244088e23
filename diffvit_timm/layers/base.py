"""Base classes of the differential attention layers: the pair of maps of each head, and both versions of lambda."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .functional import differential_attention
from .kernels.layout import BranchDims
from .kernels.vector_lambda import vector_lambda

__all__ = [
    "FROM_SCRATCH_ONLY",
    "Branches",
    "DifferentialLayer",
    "Version1",
    "Version2",
    "attention_kind",
    "differential_layers",
    "layer_repr",
]

# Kinds of attention to compare with: plain attention with timm's gate, and DnA. They have no pretrained weights and no
# conversion.
FROM_SCRATCH_ONLY = ("gated", "dna")

# FX looks for these names in every module that calls the functions.
torch.fx.wrap("differential_attention")
torch.fx.wrap("vector_lambda")


# Names of the projections in timm's layers: of queries, keys and values together, of the queries, and of the heads.
FUSED_PROJECTIONS = ("qkv", "in_proj")
QUERY_PROJECTIONS = (*FUSED_PROJECTIONS, "q_proj")
OUTPUT_PROJECTIONS = ("proj", "o_proj", "attn_out_proj", "out_proj")
# Prefixes of the tensors that only differential layers have.
DIFFERENTIAL_PREFIXES = ("lambda_", "branch_widths", "channel_order", "sub_norm.")


class Branches(NamedTuple):
    """All that determines the maps and outputs of the heads of a layer.

    Attributes:
        q, k: queries and keys in the layout of `differential_attention`.
        v: values, (B, H, N, Dv).
        lam: lambda, broadcastable to (B, H, N, 1).
        bias: what is added to the logits of both maps, broadcastable to (B, H, N, N), or None.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    lam: Tensor
    bias: Tensor | None


class DifferentialLayer(nn.Module):
    """Base class of the differential self-attention layers.

    A subclass defines `forward`, how the tokens are projected and how the heads are merged; `Version1` and `Version2`
    define lambda. `project_qkv`, `attend` and `forward` of a subclass take the same arguments.

    `load_state_dict` refuses the projections of another kind of layer, also with strict=False, because their shapes may
    fit and the layer would compute something else: those of plain attention, which must be converted, and those of a
    differential layer with another lambda, another split of the branches, or another order of the channels. Weights
    without projections, such as those of a LoRA or of a head, load as in any module.

    Shapes: B images, N tokens, H heads.
    """

    fused_attn: bool
    attn_drop: nn.Dropout
    branch_dims: BranchDims
    num_heads: int
    scale: float
    lambda_init: Tensor

    def project_qkv(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Compute all that the maps depend on from the arguments of `forward`.

        Returns:
            q, k and v, and the bias of the logits or None.
        """
        raise NotImplementedError

    def attend(self, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the input of the output projection, (B, N, dim), from the arguments of `forward`."""
        raise NotImplementedError

    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens that are projected, (B, N, dim), from the first argument of `forward`."""
        return x

    def arrange(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Bring the queries and keys of `project_qkv` into the layout that `differential_attention` takes."""
        return q, k

    def compute_lambda(self, x: Tensor) -> Tensor:
        """Compute lambda for tokens x, (B, N, dim), in float32 and in a shape that broadcasts to (B, H, N, 1)."""
        raise NotImplementedError

    def head_norm_weight(self) -> Tensor | None:
        """Weight of the RMSNorm of each head's output, (head width,); None if the layer has no such norm.

        Constant factors of the output are part of the weight.
        """
        return None

    def merge_heads(self, heads: Tensor, x: Tensor) -> Tensor:
        """Turn the outputs of the heads, (B, H, N, head width), into the input of the output projection, (B, N, dim).

        Args:
            heads: outputs of the heads.
            x: tokens, (B, N, dim), for layers whose output has a gate.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return what `print(model)` shows of the layer: its kind, heads and branch widths, and its lambda.

        For version 1 this is the present value of lambda. Lambda of version 2 depends on the tokens, so lambda_init is
        shown.
        """
        return layer_repr(self)

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """Set lambda_init in place. From then on it is part of the state dict, so copy the model for EMA afterwards."""
        self.lambda_init.fill_(value)
        self._non_persistent_buffers_set.discard("lambda_init")

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        if prefix + "lambda_init" in state_dict:
            self._non_persistent_buffers_set.discard("lambda_init")
        loaded = {key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)}
        if (error := self._kind_error(prefix, loaded)) is not None:
            errors.append(error)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    @torch.jit.ignore
    def _kind_error(self, prefix: str, loaded: set[str]) -> str | None:
        """Return why projections that are loaded belong to another kind of layer; None if they do not.

        Args:
            prefix: name of the layer in the network, with a dot at its end.
            loaded: names of all tensors that are loaded.
        """
        # The weight of Gemma's projections is that of their part `linear`.
        weights = [
            f"{name}{part}.weight" for name in (*QUERY_PROJECTIONS, *OUTPUT_PROJECTIONS) for part in ("", ".linear")
        ]
        projection = next((weight for weight in weights if weight in loaded), None)
        if projection is None:
            return None
        own = {name for name, _ in self.named_parameters()} | self._buffers.keys() - self._non_persistent_buffers_set
        own -= {name for name, buffer in self._buffers.items() if buffer is None}
        theirs, ours = ({name for name in names if name.startswith(DIFFERENTIAL_PREFIXES)} for names in (loaded, own))
        if not theirs:
            return (
                f"{prefix}{projection} comes from plain attention and must be converted: use from_vit, or create_model "
                "with pretrained=True"
            )
        if theirs == ours:
            return None
        names = ", ".join(sorted(theirs ^ ours))
        return f"{prefix}{projection} comes from another kind of differential layer: only one of the two has {names}"

    @torch.jit.ignore
    def branches(self, *args: Any, **kwargs: Any) -> Branches:
        """Compute all that determines the maps and outputs of the heads. The arguments are those of `forward`."""
        q, k, v, bias = self.project_qkv(*args, **kwargs)
        x = args[0] if args else kwargs["x"]
        return Branches(*self.arrange(q, k), v, self.compute_lambda(self.tokens(x)), bias)

    def mix(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        """Compute the outputs of the heads, (B, H, N, head width).

        Args:
            x: tokens, (B, N, dim), on which lambda depends.
            q, k, v, bias: the result of `project_qkv`.
        """
        q, k = self.arrange(q, k)
        norm_weight = self.head_norm_weight()
        return differential_attention(
            q,
            k,
            v,
            self.compute_lambda(x),
            self.branch_dims,
            self.scale,
            attn_mask=bias,
            dropout_p=self.attn_drop.p if self.training else 0.0,
            norm_weight=None if norm_weight is None else norm_weight.to(q.dtype),
            fused=self.fused_attn,
        )


class Version1(DifferentialLayer):
    """Lambda of version 1, `exp(lambda_q1 . lambda_k1) - exp(lambda_q2 . lambda_k2) + lambda_init`, for all heads.

    `Differential Transformer` - https://arxiv.org/abs/2410.05258, equation 2

    Each branch reads a part of the channels of q and k: branch_dims is the pair of their widths.
    """

    branch_dims: tuple[int, int]
    lambda_q1: Tensor
    lambda_k1: Tensor
    lambda_q2: Tensor
    lambda_k2: Tensor

    def compute_lambda(self, x: Tensor) -> Tensor:
        """Compute lambda, a float32 scalar that does not depend on the tokens x."""
        return vector_lambda(self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2, self.lambda_init)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        if prefix + "branch_widths" in state_dict:
            loaded = tuple(round(width) for width in state_dict[prefix + "branch_widths"].tolist())
            if loaded != self.branch_dims:
                errors.append(f"{prefix}branch_dims is {self.branch_dims} in this layer and {loaded} in the checkpoint")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


class Version2(DifferentialLayer):
    """Lambda of version 2, `sigmoid(lambda_proj(x) + logit(lambda_init))`, one number per token and head.

    `Differential Transformer V2` - https://huggingface.co/blog/microsoft/diff-attn-v2

    Each head has two queries over one key, so both branches read all channels of k, and branch_dims is None.
    """

    branch_dims: None
    lambda_proj: nn.Linear
    # TorchScript reads the annotations of a class or, if it has none, those of its parents, which it does not resolve.
    lambda_init: Tensor

    def compute_lambda(self, x: Tensor) -> Tensor:
        """Compute lambda, (B, H, N, 1) in float32, for tokens x, (B, N, dim)."""
        logits = self.lambda_proj(x).float() + torch.logit(self.lambda_init.float())  # (B, N, H)
        return torch.sigmoid(logits).transpose(1, 2).unsqueeze(-1)

    @torch.jit.ignore
    def set_lambda_init(self, value: float) -> None:
        """Set lambda_init in place, as in `DifferentialLayer`.

        Raises:
            ValueError: a value outside (0, 1).
        """
        self.require_sigmoid(value)
        super().set_lambda_init(value)

    @staticmethod
    def require_sigmoid(lambda_init: float | str) -> None:
        """Check that a sigmoid can have a value.

        Raises:
            ValueError: a value outside (0, 1).
        """
        if isinstance(lambda_init, str) or not 0 < lambda_init < 1:
            raise ValueError(f"lambda_init={lambda_init!r} must be between 0 and 1: lambda of version 2 is a sigmoid")


def differential_layers(model: nn.Module) -> list[DifferentialLayer]:
    """Return the differential attention layers of a network, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, DifferentialLayer)]


def layer_repr(layer: Any) -> str:
    """Return the line that describes a layer in `print(model)`, without the parts of the layer, which follow it.

    Args:
        layer: a differential layer, or one of DnA.
    """
    kind = "dna" if not isinstance(layer, DifferentialLayer) else "diff_v2" if isinstance(layer, Version2) else "diff"
    entries = {"attn": kind, "num_heads": layer.num_heads}
    if kind == "diff":
        entries["branch_dims"] = layer.branch_dims
    if kind != "dna" and all(map(_has_value, (layer.lambda_init, *layer.parameters(recurse=False)))):
        with torch.no_grad():
            value = layer.lambda_init if kind == "diff_v2" else layer.compute_lambda(layer.lambda_init)
        entries["lambda_init" if kind == "diff_v2" else "lambda"] = f"{value.item():.4g}"
    return ", ".join(f"{name}={value}" for name, value in entries.items())


def _has_value(tensor: Tensor) -> bool:
    """Return whether a tensor can be read at once: not on the meta device, not traced, and not sharded.

    All processes would have to read a sharded tensor together, but `print(model)` often runs in one of them.
    """
    return type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and not tensor.is_meta


def attention_kind(model: nn.Module) -> str:
    """Return the attention of a network: 'diff', 'diff_v2', one of FROM_SCRATCH_ONLY, or 'plain' for any other.

    A network of timm with a gate is 'plain': only our variants with `attn='gated'` are 'gated'.
    """
    if layers := differential_layers(model):
        return "diff_v2" if isinstance(layers[0], Version2) else "diff"
    own = getattr(model, "attn", None)
    return own if isinstance(own, str) and own in FROM_SCRATCH_ONLY else "plain"

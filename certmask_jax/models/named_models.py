"""What a name of a model stands for: ``create`` makes a ``Model`` from a name and its options."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax._later import Later
from certmask_jax._own_settings import usual_promotion
from certmask_jax.inference.distinct_fields import LocalLogits
from certmask_jax.inference.model_kinds import ModelKind, kind_of
from certmask_jax.inference.preprocessing import ENCODINGS, Encoding, encoded_channels
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.models.data_config import DataConfig
from certmask_jax.models.published import MODELS
from certmask_jax.models.spellings import resolve

if TYPE_CHECKING:
    import flax.linen as nn
else:
    nn = Later("flax.linen")

Params = Any
"""A model's variables: ``{"params": ..., "batch_stats": ...}``."""

DEFAULT = "vit_digits"
"""The model that ships with weights."""

ApplyFn = Callable[[Params, Array], Array]


@dataclasses.dataclass(frozen=True)
class Model:
    """A named model.

    Attributes:
      name: as it was asked for.
      num_classes: K.
      module: the Linen module, in eval mode; ``train_module`` in training mode.
      data_config: preprocessing that it was trained with.
      apply_fn: ``(params, normalised images float32[B, h, w, c]) -> logits float32[B, K]``. Equal
        models share it, so that JAX compiles once.
      local: its local logits, where the logits are their mean (BagNet); else None.
      encoding: how it is told what is hidden, see ``Preprocessing.encoding``.
      dropping: how it is given some of its tokens, of a ViT; else None.
    """

    name: str
    num_classes: int
    module: nn.Module
    train_module: nn.Module
    data_config: DataConfig
    apply_fn: ApplyFn = dataclasses.field(repr=False)
    local: LocalLogits | None = None
    encoding: Encoding = "fill"
    dropping: TokenDropping | None = None

    def __repr__(self) -> str:
        height, width = self.data_config.input_size
        return f"Model({self.name}: {height}x{width} -> {self.num_classes} classes)"

    @property
    def kind(self) -> ModelKind:
        """What may be asked of its ``apply_fn`` beside calling it: its parts, if it is in two."""
        return kind_of(self.apply_fn)

    @property
    def facts(self) -> dict[str, str]:
        """What changes last bits of its logits and no option says: for the fingerprint of a run."""
        token_only = getattr(self.module, "computes_token_only", False)
        facts = {"last_block": "class token alone"} if token_only else {}
        if getattr(self.module, "has_gpu_forms", False):
            facts["parts_of_blocks"] = "in the forms for GPUs"
        return facts

    def init(self, key: Array) -> Params:
        """Random variables."""
        size = self.data_config.input_size
        channels = encoded_channels(self.encoding, self.data_config.channels)
        module = self.module
        if getattr(module, "attention", "xla") != "xla":  # it takes 16 bits alone
            module = module.clone(attention="xla")
        with usual_promotion():
            return module.init(key, np.zeros((1, *size, channels), np.float32))

    def param_shapes(self) -> Params:
        """The tree of ``jax.ShapeDtypeStruct``, without allocating."""
        try:
            hash(self)
        except TypeError:  # one of the user's own, with a field that has no hash
            return _traced_shapes(self)
        shapes = _kept_shapes(self, jnp.result_type(float))
        return jax.tree.map(lambda leaf: leaf, shapes)  # containers of the caller's own


def _traced_shapes(model: Model) -> Params:
    from certmask_jax.models.layers import shapes_alone  # which imports Flax

    with shapes_alone():
        return jax.eval_shape(lambda: model.init(jax.random.key(0)))


@functools.lru_cache(maxsize=64)
def _kept_shapes(model: Model, default: Any) -> Params:
    """Traced once: a program asks several times, and a trace of a ViT takes longer than a run."""
    del default  # the floats that a module leaves to JAX, which may be of 64 bits
    return _traced_shapes(model)


def names() -> dict[str, str]:
    """Short name -> one line about it."""
    return {name: entry.about for name, entry in MODELS.items()}


def create(
    name: str,
    *,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    dtype: Any = None,
    param_dtype: Any = None,
    pooling: str | None = None,
    gelu: str | None = None,
    attention: str | None = None,
    last_block: str | None = None,
    encoding: Encoding = "fill",
) -> Model:
    """A model by name.

    Args:
      name: one of ``names``, or timm's or a PatchCleanser checkpoint's name for one of them
        (see ``models.spellings``).
      num_classes: by default what the name says (``..._imagenette``: 10), else what the published
        weights have.
      input_size: ``(height, width)`` other than the model's own; resizes straight to it.
      dtype: of the computation, such as ``"bfloat16"``; float32 by default. Norms, softmax and
        logits are in float32 in any case.
      param_dtype: of the parameters; float32 by default.
      pooling: ViTs only: ``"token"`` (default) or ``"mean"``.
      gelu: ViTs only: ``"exact"`` (default, timm's) or ``"tanh"`` (Google's own weights).
      attention: ViTs only: ``"xla"`` (default) or ``"cudnn"``, on NVIDIA GPUs in 16 bits.
      last_block: ViTs only: ``"token"`` (default but for ``vit_digits``) computes of the last block
        what the class token needs; ``"all"`` computes it for all tokens.
      encoding: how the model is told what is hidden, which decides its input channels; see
        ``Preprocessing.encoding``.

    Raises:
      ValueError: for an unknown name, with some that are like it, or an option that it lacks.
    """
    spelling = resolve(name)
    entry = MODELS[spelling.model]
    options = {
        "dtype": dtype,
        "param_dtype": param_dtype,
        "pooling": pooling,
        "gelu": gelu,
        "attention": attention,
        "last_block": last_block,
    }
    chosen = {option: value for option, value in options.items() if value is not None}
    for option in ("dtype", "param_dtype"):
        if option in chosen:
            chosen[option] = _as_dtype(chosen[option], option)
    classes = spelling.num_classes or entry.num_classes if num_classes is None else num_classes
    if classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {classes}")
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding: expected one of {', '.join(ENCODINGS)}, got {encoding!r}")
    built = _build(spelling.model, classes, tuple(sorted(chosen.items())))
    config = entry.data_config
    if spelling.resize is not None:
        config = dataclasses.replace(config, resize=spelling.resize)
    if input_size is not None or spelling.resizes_whole:
        size = config.input_size if input_size is None else input_size
        config = dataclasses.replace(config, input_size=size, resize=None)
    return Model(
        name,
        classes,
        built.module,
        built.train_module,
        config,
        built.apply_fn,
        built.local,
        encoding,
        built.dropping,
    )


def default_weights(name: str) -> Path | None:
    """The weights that ship with a model, or None."""
    path = Path(__file__).parent.parent / "pretrained" / f"{name}.npz"
    return path if path.is_file() else None


class _Built(NamedTuple):
    """What equal models share, see ``Model``."""

    module: nn.Module
    train_module: nn.Module
    apply_fn: ApplyFn
    local: LocalLogits | None
    dropping: TokenDropping | None


@functools.lru_cache(maxsize=64)
def _build(model: str, num_classes: int, options: tuple[tuple[str, Any], ...]) -> _Built:
    """The modules in eval and training mode, and what applies them, one for equal arguments."""
    # Here, as they import Flax, which names of models do without.
    from certmask_jax.models.local_net import LocalNet
    from certmask_jax.models.vit import VisionTransformer

    build = MODELS[model].build
    module = build(num_classes=num_classes, is_training=False)
    for option, _ in options:
        if not hasattr(module, option):
            raise ValueError(f"{option}: expected only for ViTs, got it for {model}")
    module = module.clone(**dict(options))
    trained = build(num_classes=num_classes, is_training=True, **dict(options))

    def apply_fn(params: Params, images: Array) -> Array:
        with usual_promotion():
            return module.apply(params, images)  # type: ignore[return-value]

    def local_logits(params: Params, images: Array) -> Array:
        with usual_promotion():
            return module.apply(params, images, method="local_logits")  # type: ignore[return-value]

    def kept_logits(params: Params, images: Array, kept: Array, *, padded: bool = True) -> Array:
        with usual_promotion():
            return module.apply(params, images, kept, padded=padded)  # type: ignore[return-value]

    local, dropping = None, None
    if isinstance(module, LocalNet):
        local = LocalLogits(local_logits, module.receptive_field, module.stride)
    if isinstance(module, VisionTransformer):
        dropping = TokenDropping(kept_logits, module.patch)
    return _Built(module, trained, apply_fn, local, dropping)


def _as_dtype(dtype: Any, option: str) -> Any:
    """A hashable dtype, so that equal ones are one model."""
    try:
        chosen = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"{option}: expected a dtype such as bfloat16, got {dtype!r}") from error
    if not jnp.issubdtype(chosen, jnp.floating):
        raise ValueError(f"{option}: expected a floating dtype such as bfloat16, got {chosen}")
    return chosen

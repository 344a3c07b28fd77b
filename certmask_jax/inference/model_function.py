"""A model as a function of parameters and images, and what is known of it before it is run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from certmask_jax._settings import SettingError

ApplyFn = Callable[[Any, Array], Array]
"""A model: (params, normalised images float32[B, h, w, c]) -> logits [B, K], in eval mode."""


def num_classes(
    apply_fn: ApplyFn, params: Any, image_shape: tuple[int, int, int], dtype: Any = np.float32
) -> int:
    """K of a model of images ``(h, w, c)``; ``ValueError`` if it does not give logits [B, K].

    The numbers of ``params`` and images, which are of ``dtype``, are those that it is run with:
    some implementations take 16 bits alone.
    """
    try:
        structure, types = _shapes(params)
    except TypeError as error:  # no arrays
        raise _refused(image_shape, dtype, error) from error
    return _num_classes(apply_fn, structure, types, image_shape, jnp.dtype(dtype))


@functools.lru_cache(maxsize=64)
def _num_classes(
    apply_fn: ApplyFn,
    structure: Any,
    types: tuple[Any, ...],
    image_shape: tuple[int, int, int],
    dtype: Any,
) -> int:
    params = _of_shapes(structure, types)
    images = jax.ShapeDtypeStruct((2, *image_shape), dtype)
    try:
        logits = jax.eval_shape(apply_fn, params, images)
    except SettingError:  # says itself which setting it is about
        raise
    except Exception as error:  # the model's own, of any kind
        raise _refused(image_shape, dtype, error, _likely(apply_fn, error)) from error
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) != 2 or shape[0] != 2 or not 2 <= shape[1] <= 32767:
        raise ValueError(
            f"apply_fn: expected (params, images {images.dtype}[B, h, w, c]) -> logits [B, K] with "
            f"2 <= K <= 32767, got {shape} for images {images.shape}"
        )
    return int(shape[1])


_OTHER_IMAGES = "do the images have the channels and the size that the model is for?"
_NOT_OF_JAX = (
    "a function of images in NumPy, of whatever framework, is given as "
    "models.from_function(...).apply_fn, with () as parameters"
)


def _likely(apply_fn: ApplyFn, error: Exception) -> str:
    """What is likely amiss with a model that cannot be traced."""
    errors = jax.errors
    try:
        inspect.signature(apply_fn).bind((), ())
    except TypeError:  # it takes no parameters
        return _NOT_OF_JAX
    except ValueError:  # Python does not know
        pass
    asks_for_numbers = isinstance(error, errors.TracerArrayConversionError)
    # What other frameworks say of what JAX traces with, and not what JAX does of its own.
    of_others = isinstance(error, TypeError) and not isinstance(error, errors.JAXTypeError)
    is_traced = asks_for_numbers or (of_others and "Tracer" in str(error))
    return _NOT_OF_JAX if is_traced else _OTHER_IMAGES


def _refused(
    image_shape: tuple[int, int, int], dtype: Any, error: Exception, likely: str = _OTHER_IMAGES
) -> ValueError:
    why = " ".join(str(error).split())[:300] or type(error).__name__
    return ValueError(
        f"apply_fn: expected it to take (params, images {jnp.dtype(dtype)}{[2, *image_shape]}), "
        f"but it raised {type(error).__name__}: {why}; {likely}"
    )


def flops(
    apply_fn: ApplyFn, params: Any, image_shape: tuple[int, int, int], dtype: Any = np.float32
) -> float | None:
    """Floating-point operations of one forward pass, as the compiler counts them before it begins.

    ``image_shape`` is that of what the model sees, ``(h, w, c)``, of numbers of ``dtype``. None
    where the compiler does not say.
    """
    return _flops(apply_fn, *_shapes(params), image_shape, jnp.dtype(dtype))


@functools.lru_cache(maxsize=64)
def _flops(
    apply_fn: ApplyFn,
    structure: Any,
    types: tuple[Any, ...],
    image_shape: tuple[int, int, int],
    dtype: Any,
) -> float | None:
    image = jax.ShapeDtypeStruct((1, *image_shape), dtype)
    params = _of_shapes(structure, types)
    counted = _counted(apply_fn, params, image)
    if counted is None:  # compilers for GPUs do not count, and the one for CPUs is mostly there too
        try:
            with jax.default_device(jax.local_devices(backend="cpu")[0]):
                counted = _counted(apply_fn, params, image)
        except (RuntimeError, ValueError):  # no such backend, or attention that CPUs do not have
            return None
    return counted


def _counted(apply_fn: ApplyFn, params: Any, image: Any) -> float | None:
    """What the compiler of the default device says of one image."""
    analysis = jax.jit(apply_fn).lower(params, image).cost_analysis()
    return None if not analysis or "flops" not in analysis else float(analysis["flops"])


def _shapes(params: Any) -> tuple[Any, tuple[Any, ...]]:
    """What tells parameters apart that are traced alike: their structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(params)
    return structure, tuple(map(jax.typeof, leaves))


def _of_shapes(structure: Any, types: tuple[Any, ...]) -> Any:
    array: Any = jax.ShapeDtypeStruct
    leaves = [array(t.shape, t.dtype, weak_type=t.weak_type) for t in types]
    return jax.tree.unflatten(structure, leaves)

"""From the classes of a data set to the outputs of a model: the label of each, or an error.

A model has as many outputs as it was trained with, a data set as many classes as are there. Which
output is which class is never guessed: it follows from ImageNet's ids, from numbers, from an index
that is given, from what the weights say their outputs are, or from there being as many of both.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from certmask_jax._text import some

ClassIndex = Mapping[str, int] | Literal["sorted"]
"""Name -> output; or ``"sorted"``: the names in the order of their letters, as torchvision does."""

_WNID = re.compile(r"([nN]\d{8})(?:[^0-9A-Za-z].*)?", re.DOTALL)
_IMAGENET = 1000


class Classes(NamedTuple):
    """What the classes of a data set are to a model with K outputs.

    Attributes:
      labels: output of each class of the data set, in its order.
      output_names: ``[K]``, what each output stands for; "" where the data set does not say.
      how: in a line, for results.
    """

    labels: tuple[int, ...]
    output_names: tuple[str, ...]
    how: str


@functools.cache
def imagenet_wnids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes (ILSVRC 2012), in the order of the outputs.

    That order is the order of the ids, which all published models follow (Russakovsky et al., 2015,
    ImageNet Large Scale Visual Recognition Challenge).
    """
    return tuple((Path(__file__).parent / "imagenet_wnids.txt").read_text("ascii").split())


def wnid(name: str) -> str | None:
    """The WordNet id that a name is or begins with (``n02085620-Chihuahua``), or None."""
    match = _WNID.fullmatch(name)
    return match[1].lower() if match else None


def mapped(
    names: Sequence[str],
    num_outputs: int | None = None,
    index: ClassIndex | None = None,
    *,
    in_order: bool = False,
    output_names: Sequence[str] = (),
) -> Classes:
    """The outputs that the classes of a data set are.

    Args:
      names: of the n classes, each once, in the data set's own order.
      num_outputs: K; None for as many as there are classes.
      index: what is given beside the data set; it wins over all that the names say.
      in_order: whether the data set itself numbers its classes, in this order (TFDS does; a folder
        does not). That is taken for the order of the outputs, unless the names say another.
      output_names: ``[K]``, the outputs by name, where the weights say them. Another number of
        names says nothing of this model.

    Returns:
      The mapping. With an index it is that. Else, where all names are among those of the outputs,
      it is theirs. Else, where K is n, the order, except that names that are all numbers from 0 to
      K - 1 are taken as the numbers that they are. Where K is more: such numbers, or ImageNet's ids
      for K = 1,000.

    Raises:
      ValueError: for what can be read in two ways or not at all, with the ways out.
    """
    outputs = len(names) if num_outputs is None else num_outputs
    if index is not None and index != "sorted":
        return _by_index(names, outputs, index)
    if len(names) > outputs:
        raise ValueError(
            f"expected at least {len(names)} outputs of the model, as many as the data set has "
            f"classes ({some(names)}), got {outputs}; give weights with a head for them, or a "
            "class index that joins classes"
        )
    if index is None and len(output_names) == len(set(output_names)) == outputs:
        there = [name in output_names for name in names]
        if all(there):
            places = [output_names.index(name) for name in names]
            return _classes(names, places, outputs, "weights' card")
        if any(there):
            others = [name for name, is_there in zip(names, there, strict=True) if not is_there]
            raise ValueError(
                "expected classes that are outputs of the model, which its weights name "
                f"({some(output_names)}), but {len(others)} of {len(names)} are not "
                f"({some(others)}); give a class index, a file that says which output each is"
            )
    if index == "sorted":
        if len(names) != outputs:
            raise ValueError(
                f"class index sorted: expected as many classes as the model has outputs, "
                f"{outputs}, got {len(names)}; give a file that says which output each is"
            )
        order = _by_letters(names)
        return _classes(names, [order.index(name) for name in names], outputs, "sorted names")
    numbers = _numbers(names)
    if numbers is not None and max(numbers) < outputs and not in_order:
        return _classes(names, numbers, outputs, "names are numbers")
    if len(names) == outputs:
        if in_order:
            _check_not_in_two_orders(names, numbers)
            return _classes(names, range(outputs), outputs, "as the data set numbers them")
        order = _by_letters(names)
        if numbers is not None and sorted(names, key=int) != order:
            raise ValueError(
                f"the class names are numbers, {min(numbers)} to {max(numbers)}, but the model's "
                f"outputs are 0 to {outputs - 1}: that can be read in two ways. Give a class "
                "index: a file that says which output each name is, or sorted for the order of "
                "letters "
                f"({', '.join(order[:3])}, ...), as torchvision's ImageFolder numbers them"
            )
        return _classes(names, [order.index(name) for name in names], outputs, "sorted names")
    if numbers is not None and max(numbers) < outputs:
        return _classes(names, numbers, outputs, "names are numbers")
    ids = [wnid(name) for name in names]
    if outputs == _IMAGENET and all(ids):
        return _by_wnid(names, [str(one) for one in ids])
    kind = (
        "ImageNet ids are mapped for models with 1,000 outputs only; "
        if all(ids)
        else f"numbers from {min(numbers)} to {max(numbers)} are no outputs; "
        if numbers is not None
        else ""
    )
    raise ValueError(
        f"expected to know which of the model's {outputs} outputs each class is, got {len(names)} "
        f"classes named {some(names)}. {kind}give a class index, a file that says so (name, "
        f"output), or a model with {len(names)} outputs trained on these classes"
    )


def restricted(classes: Classes) -> tuple[Classes, tuple[int, ...]]:
    """Renumbers classes for a model that has no other outputs, and says which outputs it keeps.

    Raises:
      ValueError: for classes that are one output only.
    """
    kept = tuple(sorted(set(classes.labels)))
    if len(kept) < 2:
        raise ValueError(
            f"only_classes: expected at least 2 outputs of the model to choose among, got "
            f"{len(kept)} ({classes.output_names[kept[0]]})"
        )
    place = {output: number for number, output in enumerate(kept)}
    labels = tuple(place[label] for label in classes.labels)
    names = tuple(classes.output_names[output] for output in kept)
    return Classes(labels, names, f"{classes.how}, of these classes only"), kept


def _check_not_in_two_orders(names: Sequence[str], numbers: Sequence[int] | None) -> None:
    """``ValueError`` for names that number the outputs otherwise than the data set does.

    TFDS has such: ``imagenet_resized`` is in the order of ImageNet's development kit.
    """
    if numbers is not None and sorted(numbers) == list(range(len(names))):
        said, what = [str(number) for number in sorted(numbers)], "numbers"
        differ = list(numbers) != list(range(len(names)))
    else:
        ids = [wnid(name) for name in names]
        said, what = list(imagenet_wnids()), "ImageNet ids"
        differ = None not in ids and set(ids) == set(said) and ids != said
    if differ:
        raise ValueError(
            f"the classes are {what}, but the data set has them in another order "
            f"({', '.join(names[:3])}, ...) than their own ({', '.join(said[:3])}, ...): that can "
            "be read in two ways. Give a class index: a file that says which output each name is "
            "(a line for each output, with its name, will do)"
        )


def _by_index(names: Sequence[str], outputs: int, index: Mapping[str, int]) -> Classes:
    missing = [name for name in names if name not in index]
    if missing:
        raise ValueError(
            f"class index: expected every class of the data set, but {len(missing)} of "
            f"{len(names)} are not in it ({some(missing)})"
        )
    outside = [f"{name}: {index[name]}" for name in names if not 0 <= index[name] < outputs]
    if outside:
        raise ValueError(
            f"class index: expected outputs from 0 to {outputs - 1}, got {some(outside)}"
        )
    return _classes(names, [index[name] for name in names], outputs, "class index")


def _by_wnid(names: Sequence[str], ids: Sequence[str]) -> Classes:
    place = {one: number for number, one in enumerate(imagenet_wnids())}
    unknown = [name for name, one in zip(names, ids, strict=True) if one not in place]
    if unknown:
        raise ValueError(
            f"expected ids of ImageNet's 1,000 classes, but {len(unknown)} of {len(names)} are "
            f"others ({some(unknown)}); give a class index, a file that says which output each is"
        )
    labels = tuple(place[one] for one in ids)
    return Classes(labels, imagenet_wnids(), "ImageNet ids")


def _classes(names: Sequence[str], labels: Sequence[int], outputs: int, how: str) -> Classes:
    named: dict[int, list[str]] = {}
    for name, label in zip(names, labels, strict=True):
        named.setdefault(label, []).append(name)
    output_names = tuple("/".join(named.get(output, [])) for output in range(outputs))
    return Classes(tuple(labels), output_names, how)


def _by_letters(names: Sequence[str]) -> list[str]:
    """Sorts names of folders as torchvision does: bytes that are no text come after letters."""

    def raw(name: str) -> str:
        return re.sub(r"\\u(dc[89a-f][0-9a-f])", lambda escape: chr(int(escape[1], 16)), name)

    return sorted(names, key=raw)


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The names as whole numbers, each once; None if they are not."""
    if not names or not all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return None
    numbers = [int(name) for name in names]
    return numbers if len(set(numbers)) == len(numbers) else None

"""What the options of a model come down to: it is made by its name, and its weights are loaded."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any

from certmask_jax import models, weights
from certmask_jax._text import encodable
from certmask_jax.inference.preprocessing import Encoding
from certmask_jax.models import Model, Params
from certmask_jax.programs import imported, program
from certmask_jax.programs.command_line import as_options
from certmask_jax.weights import Address, Card, SettingError, WeightsFile
from certmask_jax.weights.torch_files import TorchMissingError


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """One field for each option; None where it was not given."""

    model: str  # empty where the weights are to say it, until ``with_card``
    num_classes: int | None
    input_size: tuple[int, int] | None
    gelu: str | None
    pooling: str | None
    attention: str | None
    encoding: Encoding | None  # None: as the model says itself
    weights: Address | None
    card: Card | None  # of the weights, where they have one that is of use
    weights_entry: str | None
    new_head: bool
    resize_positions: bool
    can_start_head: bool
    _created: dict[int | None, Model] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def with_card(self) -> ModelOptions:
        """The options with what is said of the weights where they are published, which is fetched.

        Raises:
          ValueError, OSError: for weights whose card cannot be had or is of another model.
        """
        # A user's own model is as it says itself.
        may_be = not self.model or _path_of_own(self.model) is None
        card = weights.card_of(self.weights) if self.weights is not None and may_be else None
        if card is None and not self.model:
            raise ValueError(
                f"--model: expected one, as nothing says what the weights of {self.weights} are of "
                "(there is no card as timm writes it)"
            )
        if card is None:
            return self
        with as_options("model"):
            name = self.model or card.model_name()
            card.check_is(name)
            pooling = self.pooling or card.options().get("pooling")
        return dataclasses.replace(self, model=name, card=card, pooling=pooling)

    @property
    def output_names(self) -> tuple[str, ...]:
        """What the weights say their outputs are; empty where they do not, or get a new head."""
        return () if self.card is None or self.new_head else self.card.label_names

    def card_for(self, model: Model) -> Card | None:
        """The card of weights that were made for a model from those of these options."""
        return None if self.card is None else self.card.of_trained(model)

    def create(self, *, num_classes: int | None = None) -> Model:
        """The model, with ``num_classes`` unless ``--num-classes`` says otherwise; made once.

        Raises:
          ValueError: for what the model does not have or cannot take, naming the option.
        """
        if num_classes not in self._created:
            self._created[num_classes] = self._create(num_classes)
        return self._created[num_classes]

    def has_fixed_outputs(self) -> bool:
        """Whether it is a user's own model of one number of outputs, whatever the data have."""
        path = _path_of_own(self.model)
        return path is not None and not imported.accepts(path, "num_classes")

    def _create(self, num_classes: int | None) -> Model:
        chosen = ("gelu", "pooling", "attention", "input_size")
        with as_options("model", "num_classes", *chosen):
            model = named_model(
                self.model,
                num_classes=num_classes if self.num_classes is None else self.num_classes,
                **{name: getattr(self, name) for name in chosen},
            )
            if self.card is not None:
                model = self.card.prepared(model, self.input_size)
            if self.input_size is not None:
                _check_input_size(model)
            if self.encoding is not None:
                model = dataclasses.replace(model, encoding=self.encoding)
        if self.resize_positions and not hasattr(model.module, "pooling"):
            raise ValueError(
                "--resize-positions: expected only for ViTs, which have position embeddings, got "
                f"it for {model.name}"
            )
        return model

    def read(self, where: Address) -> WeightsFile:
        """The file of weights, opened once for ``load``."""
        try:
            return weights.read(where, entry=self.weights_entry)
        except TorchMissingError as error:
            command = program.command("convert_weights")
            raise ValueError(f"{error}: {command} IN OUT.safetensors --model NAME") from error

    def taken(self, file: WeightsFile, model: Model) -> tuple[str | None, tuple[str, ...]]:
        """Which of a file's sets of weights ``load`` takes, and what to show of the choice."""
        try:
            entry = weights.taken(file, model)
        except SettingError as error:
            raise ValueError(error.said_with(self._option)) from error
        if self.weights_entry is not None or not entry.others:
            return entry.entry, ()
        others = " or ".join(self._option("entry", name) for name in entry.others)
        name = encodable(file.path.name)
        return entry.entry, (f"{name}: took {entry.entry!r} of several; {others} takes another",)

    def load(self, file: WeightsFile, model: Model, *, seed: int = 0) -> Params:
        """The weights of a file, made to fit as far as the options ask for it."""
        try:
            return weights.load(
                file,
                model,
                new_head=self.new_head,
                resize_positions=self.resize_positions,
                seed=seed,
            )
        except SettingError as error:
            raise ValueError(error.said_with(self._option)) from error

    def _option(self, keyword: str, value: Any) -> str:
        """What the library calls ``keyword=value``, as this program has it or another one."""
        if keyword == "entry":
            return f"--weights-entry {shlex.quote(value)}"
        if keyword == "new_head" and not self.can_start_head:
            return f"{program.command('train')} --new-head"
        return program.as_option(keyword, value)

    def about(self) -> dict[str, Any]:
        """What was asked for beside the model's name and its file, for the provenance."""
        chosen = dataclasses.asdict(self)
        return {
            name: chosen[name]
            for name in ("gelu", "pooling", "attention", "new_head", "resize_positions")
        }


def named_model(name: str, **options: Any) -> Model:
    """A model of ``models.create``, or a user's own.

    Args:
      name: as there; or ``package.module:create``, or what a package registers. That is called with
        the options that are given and returns a ``models.Model``.
      options: keywords of ``models.create``; None where they are not given.

    Raises:
      ValueError: as ``models.create``; for a user's own that cannot be imported, lacks an option,
        returns something else, or whose local logits or stem see more than they claim. It begins
        with the keyword that it is about.
    """
    path = _path_of_own(name)
    if path is None:
        return models.create(name, **options)
    given = {key: value for key, value in options.items() if value is not None}
    try:
        if not imported.accepts(path, "num_classes"):  # it has one number of outputs only
            given.pop("num_classes", None)
        imported.check_accepts(path, given)
        model: Model = imported.called(path, wanted=Model, **given)
        if model.local is not None or model.kind.parts is not None:
            models.check_field(model)
    except ValueError as error:
        about, colon, _ = str(error).partition(": ")
        raise ValueError(str(error) if colon and about in given else f"model: {error}") from error
    wanted = options.get("num_classes")
    if wanted not in (None, model.num_classes):
        raise ValueError(
            f"num_classes: expected {model.num_classes}, the outputs of {name}, got {wanted} (of "
            "the weights or the data set, where it was not given)"
        )
    return dataclasses.replace(model, name=name)


def _path_of_own(name: str) -> str | None:
    """Where a user's own model is imported from; None for those of ``models.create``."""
    return None if name in models.names() else imported.path_of(name, imported.MODELS)


def _check_input_size(model: Model) -> None:
    """``ValueError`` unless the model can take images of its input size."""
    if not model.kind.is_traced:  # it has no shapes, and is tried on noise of that size
        return
    try:
        model.param_shapes()
    except ValueError as error:
        if str(error).startswith("input_size: "):
            raise
        raise _too_small(model, error) from error
    except (TypeError, ZeroDivisionError) as error:  # what layers say of sides of 0 pixels
        raise _too_small(model, error) from error


def _too_small(model: Model, error: Exception) -> ValueError:
    height, width = model.data_config.input_size
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ValueError(
        f"input_size: expected one that {model.name} can take, got {height}x{width} ({reason})"
    )

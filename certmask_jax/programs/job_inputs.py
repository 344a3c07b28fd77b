"""The data set and the model of a config, each of which decides something of the other."""

from __future__ import annotations

import numpy as np

from certmask_jax import data, models
from certmask_jax._text import some
from certmask_jax.inference import views
from certmask_jax.inference.token_dropping import TokenDropping
from certmask_jax.models import Model
from certmask_jax.programs import imported
from certmask_jax.programs.certification_config import Config


class BrokenImagesError(ValueError):
    """Images that cannot be decoded, and what helps.

    Attributes:
      named: which, without what helps.
    """

    def __init__(self, named: str) -> None:
        super().__init__(f"{named}; mend them, or leave them out with --on-unreadable skip")
        self.named = named


def is_function(config: Config) -> bool:
    """Whether the model is a NumPy function; ``ValueError`` for options that this cannot have."""
    if ":" not in config.model.model and config.model.model in models.names():
        return False
    if imported.path_of(config.model.model, imported.MODELS) is None:
        return False
    function = config.model.create().kind.numpy_function
    if function is None:
        return False
    resizes = config.patch_lives == "native" and function.dtype == "uint8"
    for option, given, why in (
        ("two-parts", config.two_parts is not None, "it has no parts"),
        ("weights", config.model.weights is not None, "it holds its own"),
        ("weights-entry", config.model.weights_entry is not None, "it holds its own"),
        ("precision", config.precision != "highest", "it computes in its own"),
        ("views", config.views != views.NONE, "it can average over views itself"),
        ("patch-lives", resizes, "it takes uint8 images, and masked ones are resized in float32"),
        ("hidden-tokens", config.hidden_tokens != "fill", "it is given masked images"),
    ):
        if given:
            raise ValueError(
                f"--{option}: expected only for models of JAX, and {config.model.model} is a NumPy "
                f"function: {why}; leave it out"
            )
    return True


def dataset_and_model(config: Config, head: int | None) -> tuple[data.Dataset, Model]:
    """The data set and the model; the model's data config prepares the images.

    The model has the outputs that are asked for, else those of the head in the file of weights.
    """
    model = config.model.create()
    given = config.model.num_classes
    outputs = given or head
    if outputs is None and (
        config.data.dataset == "image_list" or config.model.has_fixed_outputs()
    ):
        outputs = model.num_classes
    try:
        dataset = config.data.load(
            model.data_config,
            num_outputs=outputs,
            output_names=config.model.output_names,
            native=config.patch_lives == "native",
        )
    except ValueError as error:
        if given is not None and "outputs" in str(error):
            raise ValueError(f"--num-classes: {error}") from error
        raise
    outputs = outputs or dataset.num_classes
    if outputs != model.num_classes:
        model = config.model.create(num_classes=outputs)
    return dataset, model


def model_alone(config: Config, head: int | None) -> tuple[data.Dataset, Model]:
    """As ``dataset_and_model``, where no data set says anything: one blank image."""
    model = config.model.create()
    outputs = config.model.num_classes or head or model.num_classes
    if outputs != model.num_classes:
        model = config.model.create(num_classes=outputs)
    wants = model.data_config
    blank = np.zeros((1, *wants.input_size, wants.channels), np.uint8)
    return data.from_arrays(blank, [0], data_config=wants, num_outputs=outputs), model


def unreadable_images(config: Config, dataset: data.Dataset) -> dict[str, str]:
    """Images that are known not to be readable; an error unless they are skipped."""
    broken = dataset.find_unreadable()
    if broken and config.data.on_unreadable == "stop":
        named = some([f"{image_id} ({why})" for image_id, why in broken.items()])
        raise BrokenImagesError(
            f"--data-dir {config.data.data_dir}: expected images that can be decoded, but "
            f"{len(broken)} of {len(dataset) + len(dataset.missing)} cannot: {named}"
        )
    return broken


def dropping_of(config: Config, model: Model) -> TokenDropping | None:
    """How the model drops hidden tokens, if it is to; ``ValueError`` where it cannot."""
    if config.hidden_tokens == "fill":
        return None
    asked = f"--hidden-tokens {config.hidden_tokens}"
    if model.dropping is None:
        raise ValueError(
            f"{asked}: expected a ViT, which sees an image as tokens, got {model.name}; leave it "
            "out, and hidden pixels are filled"
        )
    if config.views != views.NONE:
        raise ValueError(
            f"{asked}: expected no --views beside it, which moves what a mask hides to other tokens"
        )
    return model.dropping

"""The run that is attacked, from its folder: its config, and whether its data is there."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from certmask_jax._text import counted, json_of
from certmask_jax.certification.report import MARGINS
from certmask_jax.certification.report.files import IMAGES, RESULTS
from certmask_jax.files import fingerprint
from certmask_jax.files.storage import lacking
from certmask_jax.programs import (
    certification_config,
    certification_options,
    earlier_command,
    runtime,
)
from certmask_jax.programs.attacking.attacked_job import defenses_of
from certmask_jax.programs.attacking.run_claims import Claims, read_claims
from certmask_jax.programs.certification_config import Config
from certmask_jax.programs.certification_job import Job
from certmask_jax.programs.job_inputs import BrokenImagesError
from certmask_jax.programs.program import message
from certmask_jax.tables import saved_table
from certmask_jax.tables.image_sets import listing_of

_OF_DATA = ("dataset", "split", "classes", "subset", "attacked", "patched_with_noise_of_seed")
_OF_MODEL = ("model", "model_options", "weights_sha256")


@dataclasses.dataclass(frozen=True)
class AttackedRun:
    """The folder of a run, and what its ``results.json`` holds; ``read_run`` reads it."""

    folder: Path
    results: Mapping[str, Any]

    @property
    def provenance(self) -> dict[str, Any]:
        """The provenance in its results."""
        return dict(self.results["provenance"])

    def config(
        self,
        given: Mapping[str, Any],
        typed: Mapping[str, str],
        run_with: runtime.Runtime,
    ) -> Config:
        """The config that it had, to open its data and its model again.

        Args:
          given: values of options, by destination, in the place of those that it had: where data
            and weights are now.
          typed: how these were typed.
          run_with: devices.

        Raises:
          ValueError: for more images than it had; for a command that cannot be read.
        """
        known = self.provenance
        wanted, most = given.get("num_images"), known.get("num_images")
        if wanted is not None and most is not None and wanted > most:
            raise ValueError(
                f"{typed['num_images']}: expected at most the {most} images of {self.folder}, got "
                f"{wanted}"
            )
        with _readable(self.folder / RESULTS):
            words = earlier_command.words_of(earlier_command.of_run(known))
        read = certification_options.parser().parse_args(words)
        for name, value in given.items():
            setattr(read, name, value)
            read.typed[name] = typed[name]
        config = certification_config.read_config(read)
        told = tuple(dict.fromkeys(map(_spec, self.results["defenses"])))
        if known.get("defense") and {*told} != {*known["defense"]}:
            # Tables of that command, from which these were proved later.
            config = dataclasses.replace(config, defenses=told)
        return dataclasses.replace(
            config,
            runtime=run_with,
            out=None,
            shard=(0, 1),
            dry_run=False,
            from_tables=None,
            keep_evidence=False,
        )

    def claims(self) -> Claims:
        """What it said of each image.

        Raises:
          ValueError: where that is not there, or cannot be read.
        """
        with _readable(self.folder / IMAGES):
            conditions = {
                _spec(one): tuple(map(str, one.get("conditions", ())))
                for one in self.results["defenses"]
            }
            claims = read_claims(self.folder / IMAGES, conditions)
            precise = self.provenance.get("precision") in (None, "highest")
            return claims._replace(
                tie=MARGINS[0] if precise else MARGINS[-1],
                is_guarded=float(self.results.get("margin_guard", 0)) > 0,
            )

    @contextlib.contextmanager
    def files_found(self) -> Iterator[None]:
        """Lets an error about files that are not there, or broken, say what helps here."""
        try:
            yield
        except BrokenImagesError as error:
            raise ValueError(
                f"{error.named}; mend them: they are images of {self.folder}"
            ) from error
        except FileNotFoundError as error:
            raise ValueError(
                f"{message(error)}; --data-dir and --weights say where data and weights of "
                f"{self.folder} are now"
            ) from error

    def check_same(self, job: Job, *, fewer: bool = False) -> None:
        """Refuses data or a model that are others than those of the run.

        Images are compared as far as the run recorded them: of files their names, of others the
        pixels of the first one.

        Args:
          job: as it was opened now.
          fewer: fewer images were asked for.

        Raises:
          ValueError: naming what differs, and the option that says where they are now.
        """
        known, now = self.provenance, fingerprint.plain(job.provenance)
        of_data = tuple(name for name in _OF_DATA if not (fewer and name == "subset"))
        for names, option in ((_OF_MODEL, "weights"), (of_data, "data-dir")):
            differences = fingerprint.differences(
                {name: known.get(name) for name in names}, {name: now.get(name) for name in names}
            )
            if differences:
                raise _another(self.folder, option, "; ".join(differences))
        if not fewer:
            self._check_images(job)

    def check_threats(self, job: Job) -> None:
        """Refuses what was proved against other patches than those that its tables are of.

        Raises:
          ValueError: naming both.
        """
        by_spec = defenses_of(job)
        for result in self.results["defenses"]:
            threat = by_spec[_spec(result)].threat
            known, now = result.get("threat"), fingerprint.plain(dataclasses.asdict(threat))
            if known is None or all(known.get(name) == now[name] for name in now):
                continue
            if known.get("image_size") != now["image_size"]:
                there, here = ("x".join(map(str, one["image_size"])) for one in (known, now))
                raise _another(
                    self.folder, "data-dir", f"its images are of {there} pixels there, {here} here"
                )
            raise ValueError(
                f"{self.folder}: expected what was proved against {threat}, as the run was whose "
                f"tables it is from, but {_spec(result)} is against other patches here; certify "
                "with that patch, and attack that run"
            )

    def _check_images(self, job: Job) -> None:
        listing = listing_of(job.dataset)
        if listing is not None:
            ids = self.claims().ids
            gone = sorted(set(ids) - set(listing.ids))
            if gone:
                raise _another(
                    self.folder,
                    "data-dir",
                    f"{len(gone)} of its {counted(len(ids), 'image')} "
                    f"{'is' if len(gone) == 1 else 'are'} not "
                    f"there, such as {gone[0]}",
                )
            return
        about = self.folder / "tables" / saved_table.ABOUT
        known = json_of(about.read_bytes())["fingerprint"] if about.is_file() else {}
        first = known.get("first_image_sha256")
        if first not in (None, fingerprint.of_arrays(job.dataset.read(0, 1).images)):
            raise _another(self.folder, "data-dir", "its first image has other pixels there")


def read_run(folder: Path) -> AttackedRun:
    """The run in a folder.

    Raises:
      ValueError: for a folder without results, or results that cannot be read.
    """
    with _readable(folder / RESULTS):
        results = json_of((folder / RESULTS).read_bytes())
        dict(results["provenance"])
        list(map(_spec, results["defenses"]))
    return AttackedRun(folder, results)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Lets whatever cannot be read in a file of a run be said in a line."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        got = lacking(path.parent, "give the command of that run again, which ends with it")
        raise ValueError(
            f"{path.parent}: expected the folder of a run of certify, with {path.name}, got {got}"
        ) from error
    except (ValueError, KeyError, TypeError, StopIteration) as error:
        raise ValueError(
            f"{path}: cannot be read ({error or type(error).__name__}); give the command of that "
            "run again, which writes it anew"
        ) from error


def _spec(result: Mapping[str, Any]) -> str:
    return str(result.get("spec") or result["name"])


def _another(folder: Path, option: str, how: str) -> ValueError:
    what = "model and weights" if option == "weights" else "data"
    return ValueError(
        f"{folder}: expected the {what} of that run, but {how}; --{option} says where they are now"
    )

"""What other libraries advise stays off the screen; their errors, and other threads, do not."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest
import small_tfds

from certmask_jax import data
from certmask_jax.files.quiet_logs import errors_alone, raised_alone
from certmask_jax.models import DataConfig


def _said(caplog, name):
    return [record.message for record in caplog.records if record.name == name]


def test_errors_of_a_thread_alone_and_others_as_ever(caplog):
    log = logging.getLogger("of another library")
    with errors_alone(log.name):
        log.warning("advice")
        log.error("an error")
        other = threading.Thread(target=log.warning, args=["of another thread"])
        other.start()
        other.join()
    log.warning("after")
    assert _said(caplog, log.name) == ["an error", "of another thread", "after"]
    assert not log.filters


def test_exceptions_that_are_raised_too_are_not_logged(caplog):
    log = logging.getLogger("of another library")

    def fail():
        try:
            raise KeyError("of a write")
        except KeyError:
            log.exception("a thread ended")
            log.error("another error")

    with raised_alone(log.name):
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    assert _said(caplog, log.name) == ["another error"]


def test_after_an_exception_it_logs_as_before_and_makes_no_logger():
    log = logging.getLogger("of another library")
    with pytest.raises(KeyError), errors_alone(log.name):
        raise KeyError
    assert not log.filters
    with errors_alone("nobody has this one"):
        pass
    assert "nobody has this one" not in logging.Logger.manager.loggerDict


def test_tfds_gives_no_advice_while_images_are_read(tmp_path, caplog, monkeypatch):
    small_tfds.prepare(tmp_path, "quiet", ["cat", "dog"], [0, 1])
    from absl import logging as absl_logging
    from tensorflow_datasets.core.features import image_feature

    monkeypatch.setattr(image_feature, "cv2", None)
    monkeypatch.setattr(  # each time, and not the first time of this process alone
        absl_logging, "log_first_n", lambda level, text, n, *words: absl_logging.log(level, text)
    )
    config = DataConfig((8, 8), (0.5,) * 3, (0.5,) * 3)
    whole = data.load("tfds:quiet", data_config=config, split="validation", data_dir=tmp_path)
    np.testing.assert_array_equal(whole.read(0, 2).images[:, 0, 0, 0], [0, 1])
    assert not _said(caplog, "absl")
    with pytest.MonkeyPatch.context() as patch:  # it does give some
        patch.setattr("certmask_jax.files.quiet_logs.logging.Logger.manager.loggerDict", {})
        whole.read(0, 2)
    assert any("OpenCV" in line for line in _said(caplog, "absl"))

"""Tables in buckets: TensorStore's own drivers, against stores of Google and Amazon in process."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import threading
from pathlib import Path

import fake_buckets
import numpy as np
import pytest
from small_runs import (
    BLOCKS,
    COUNT,
    DEFENSE,
    PARAMS,
    PARTS,
    SmallTestSet,
    contents,
    evaluate,
    file_of,
    writer_of,
)

from certmask_jax.certification import evaluation, report, verdicts
from certmask_jax.certification.run_hooks import Hooks
from certmask_jax.files import storage
from certmask_jax.files.storage import BucketPath
from certmask_jax.programs import certify, page_of_run
from certmask_jax.programs import report as report_program
from certmask_jax.tables import saved_table

OPTIONS = ["--num-images", "12", "--defense", "double_masking:masks_per_axis=2", "--chunk", "8"]
WRITES_PAGES = page_of_run.try_page  # before the fixture that takes its place
_numbers = itertools.count()


class Bucket:
    """A bucket of its own for each test, as the first contact is remembered."""

    def __init__(self, scheme, fake):
        self.scheme, self.fake, self.name = scheme, fake, f"bucket-{next(_numbers)}"
        self.objects = fake.buckets[self.name] = {}
        self.root = f"{scheme}://{self.name}"
        self.url = f"{self.root}/a run/t"

    def below(self, folder):
        prefix = f"{folder}/".removeprefix(f"{self.root}/")
        return {n.removeprefix(prefix): c for n, c in self.objects.items() if n.startswith(prefix)}

    def refuse(self, status, *methods, part=""):
        self.fake.refuses = lambda m, name: status if m in methods and part in name else None


@pytest.fixture(scope="module")
def server():
    with fake_buckets.serving() as (url, fake), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "token")
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        yield fake


@pytest.fixture(params=["gs", "s3"])
def bucket(request, server):
    server.refuses = lambda method, name: None
    return Bucket(request.param, server)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The files of a run in a local folder."""
    folder = tmp_path_factory.mktemp("alone")
    evaluate(folder)
    return contents(folder)


@pytest.mark.parametrize("stop", range(len(BLOCKS) + 1))
def test_stopped_and_resumed_it_ends_in_the_files_of_a_local_run(bucket, alone, stop):
    first, second, named = SmallTestSet(stop_before=stop), SmallTestSet(), []
    if stop < len(BLOCKS):
        with pytest.raises(KeyboardInterrupt):
            evaluate(bucket.url, first)
        done = ("0", "3", "6", "9")[stop]
        with pytest.raises(FileNotFoundError, match=rf"{done} of 10 .*\(predictions/c/{stop}/0 is"):
            saved_table.load(bucket.url)
    else:
        evaluate(bucket.url, first)
    saved = evaluate(bucket.url, second, hooks=Hooks(warn=named.append))
    assert (first.blocks, second.blocks, named) == (BLOCKS[:stop], BLOCKS[stop:], [])
    assert bucket.below(bucket.url) == alone
    assert len(alone) > fake_buckets.PAGE
    np.testing.assert_array_equal(saved.labels, second.labels)
    assert saved.ids == tuple(f"Bild {i}\n\u00e4" for i in range(COUNT))
    np.testing.assert_array_equal(saved.table.predictions[2:8], saved.table.predictions[...][2:8])


@pytest.mark.parametrize("how", ["flipped", "removed"])
@pytest.mark.parametrize("part", PARTS)
def test_damage_is_named_and_mended_and_nothing_else_touched(bucket, alone, part, how):
    evaluate(bucket.url)
    file = file_of(Path("t"), part, 1).relative_to("t").as_posix()
    name = f"a run/t/{file}"
    if how == "removed":
        del bucket.objects[name]
    else:
        content = bucket.objects[name]
        bucket.objects[name] = content[:-7] + bytes([content[-7] ^ 16]) + content[-6:]
    shown = file if how == "removed" else f"{bucket.url}/{file}: is damaged"
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(shown)) as caught:
        verdicts.certify(saved_table.load(bucket.url), [DEFENSE])
    assert "give the same command again to" in str(caught.value)
    assert not re.search("\n|Error reading", str(caught.value))
    test_set, named = SmallTestSet(), []
    bucket.fake.requests.clear()
    evaluate(bucket.url, test_set, hooks=Hooks(warn=named.append))
    assert test_set.blocks == [BLOCKS[1]]
    if (part, how) == ("ids", "removed"):  # as a run leaves a block that is stopped while it writes
        assert named == []
    else:
        assert len(named) == 1
        assert f"{bucket.url}/{file}: is" in named[0]
        assert "images 3 to 5 are computed again" in named[0]
    assert bucket.below(bucket.url) == alone
    touched = {name for method, name in bucket.fake.requests if method != "GET"}
    assert touched == {f"a run/t/{file_of(Path('t'), p, 1).relative_to('t')}" for p in PARTS}


def test_other_files_of_a_table_are_mended_too(bucket, alone):
    evaluate(bucket.url)
    bucket.objects["a run/t/predictions/zarr.json"] = b"{"
    del bucket.objects["a run/t/labels/zarr.json"]
    bucket.objects["a run/t/masked_images.npy"] = alone["masked_images.npy"][:-1] + b"\1"
    with pytest.raises(ValueError, match=r"masked_images\.npy: is damaged .* again to mend it"):
        saved_table.load(bucket.url)
    test_set = SmallTestSet()
    evaluate(bucket.url, test_set)
    assert test_set.blocks == []
    assert bucket.below(bucket.url) == alone


def test_folders_that_are_another_runs_or_no_table_are_refused_and_untouched(bucket):
    bucket.objects["a run/tea/notes.txt"] = b"a folder whose name begins alike"
    bucket.objects["a run/t/"] = b""  # what a web page makes for an empty folder
    evaluate(bucket.url)
    before = dict(bucket.objects)
    with pytest.raises(FileExistsError, match=r"that of another: .*weights_sha256 is '"):
        evaluate(bucket.url, params=PARAMS * 2)
    with pytest.raises(FileExistsError, match="it holds other files; choose another folder"):
        evaluate(f"{bucket.root}/a run")
    with pytest.raises(FileExistsError, match="it holds other files"):
        evaluate(f"{bucket.root}/a run/tea/notes.txt")
    with pytest.raises(
        FileNotFoundError, match=r"none/t: expected a folder .*, got none: there is no such folder"
    ):
        saved_table.load(f"{bucket.root}/none/t")
    with pytest.raises(FileNotFoundError, match=r"tea: .*begins with table\.json, got one without"):
        saved_table.load(f"{bucket.root}/a run/tea")
    assert bucket.objects == before
    bucket.objects["a run/t/table.json"] = b"{"
    for use in (saved_table.load, evaluate):
        with pytest.raises(ValueError, match=r"table\.json: expected .* it is damaged"):
            use(bucket.url)


# --- buckets that do not answer ---


@pytest.mark.parametrize("what", ["write", "read"])
def test_a_bucket_that_refuses_in_the_midst_of_a_run_is_no_damage(bucket, alone, what):
    if what == "write":
        bucket.refuse(403, "PUT", "POST", part="margins/c/2")
    else:
        with pytest.raises(KeyboardInterrupt):
            evaluate(bucket.url, SmallTestSet(stop_before=2))
        bucket.refuse(403, "GET", part="margins/c/1")
    before = dict(bucket.objects)
    named = []
    with pytest.raises(OSError, match=r"no permission \(.+margins/c/[12]/0.+; log in") as caught:
        evaluate(bucket.url, hooks=Hooks(warn=named.append))
    if what == "write":
        assert re.search(r"\. 6 images are stored; give the same command again", str(caught.value))
    else:
        assert bucket.objects == before
    assert named == []
    bucket.refuse(None)
    evaluate(bucket.url)
    assert bucket.below(bucket.url) == alone


@pytest.mark.parametrize("part", ["labels/zarr.json", "ids/000001.json", "masked_images.npy"])
def test_small_files_that_are_refused_are_not_damaged_either(bucket, alone, part):
    evaluate(bucket.url)
    bucket.refuse(403, "GET", part=part)
    with pytest.raises(OSError, match="no permission"):
        evaluate(bucket.url)
    assert bucket.below(bucket.url) == alone


def test_what_is_there_is_found_out_in_few_requests(bucket):
    """Each takes a tenth of a second, and a table may have ten thousand files."""
    evaluate(bucket.url)
    bucket.fake.requests.clear()
    saved_table.load(bucket.url)
    pages = -(-len(bucket.objects) // fake_buckets.PAGE)
    lists = [name for _, name in bucket.fake.requests].count("")
    assert lists == 1 + pages < 4 * len(BLOCKS)  # is table.json there?


def test_requests_that_fail_are_repeated(bucket, alone):
    failures = iter([503, 429])
    evaluate(bucket.url, SmallTestSet())
    bucket.fake.refuses = lambda method, name: next(failures, None) if "ids/" in name else None
    saved = saved_table.load(bucket.url)
    assert len(saved.ids) == COUNT
    assert next(failures, None) is None


LOG_IN = {"gs": "gcloud auth application-default login", "s3": "aws configure"}


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_without_permission_is_one_line_before_any_work(bucket, capsys, status):
    bucket.refuse(status, "GET", "PUT", "POST")
    _check_refused(bucket, capsys, LOG_IN[bucket.scheme])
    bucket.refuse(status, "PUT", "POST")  # may be read
    _check_refused(bucket, capsys, LOG_IN[bucket.scheme])
    assert bucket.objects == {}


def test_whoever_may_not_list_is_refused(bucket, capsys):
    """The stores then say of a file that is missing that it may not be read."""
    bucket.fake.refuses = lambda m, name: 403 if m == "GET" and "first contact" in name else None
    _check_refused(bucket, capsys, "one who may list, read, write and delete there")


def test_a_bucket_that_does_not_exist_is_one_line_before_any_work(bucket, capsys):
    del bucket.fake.buckets[bucket.name]
    _check_refused(bucket, capsys, f"there is no bucket {bucket.root}", "create it")


def test_a_bucket_that_cannot_be_reached_is_one_line_before_any_work(bucket, capsys, monkeypatch):
    monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    # The network's own reason, not that time ran out: requests are not repeated for minutes.
    _check_refused(
        bucket, capsys, "cannot be reached (CURL error", "check its name and the network"
    )
    assert certify.main(["--from-tables", bucket.url]) == 2
    assert f"error: {bucket.url}/tables: the bucket cannot" in capsys.readouterr().err


def test_a_bucket_that_says_nothing_is_given_up(bucket):
    given_up = threading.Event()
    bucket.fake.refuses = lambda method, name: 404 if given_up.wait() else None
    try:
        with pytest.raises(OSError, match=r"cannot be reached \(no answer in 0\.01 s\)"):
            dataclasses.replace(storage.any_path(bucket.url), patience=0.01).exists()
    finally:
        given_up.set()


def _check_refused(bucket, capsys, *messages):
    def no_work(*_):
        raise AssertionError("the model was prepared")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "engine_for", no_work)
        assert certify.main([*OPTIONS, "--out", bucket.url]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {bucket.url}")
    for message in messages:
        assert message in error


# --- paths ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ftp://bucket/x", r"gs://BUCKET/FOLDER or s3://BUCKET/FOLDER, got ftp://; write to a"),
        ("hdfs://name/x", r"got hdfs://"),
        ("gs://bucket", "got no folder in the bucket"),
        ("gs://bucket//", "got no folder in the bucket"),
        ("s3:///x", "got no bucket"),
        ("s3://bucket/a/../b", r"got '\.' or '\.\.'"),
        ("gs:/bucket/x", r"got one slash after the colon; pathlib\.Path leaves one of"),
        (Path("s3://bucket/x"), "got one slash after the colon"),
    ],
)
def test_paths_that_are_none_are_refused(tmp_path, monkeypatch, capsys, text, message):
    monkeypatch.chdir(tmp_path)
    for use in (storage.any_path, saved_table.load, evaluate):
        with pytest.raises(ValueError, match=message):
            use(text)
    for option in ("--out", "--from-tables"):
        assert certify.main([*OPTIONS, option, str(text)]) == 2
        assert re.match(f"error: .*{message}", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_paths_come_back_as_they_were_given():
    path = storage.any_path("gs://bucket//a b/c%20?#/")
    assert (path, str(path)) == (
        BucketPath("gs", "bucket", "a b/c%20?#"),
        "gs://bucket/a b/c%20?#",
    )
    assert ((path / "d").name, storage.any_path(path)) == ("d", path)
    for local in ("runs/x", "./ab://x", "C:/x", "."):  # those of this machine become absolute
        assert storage.any_path(local) == storage.any_path(Path(local)) == Path(local).absolute()
    with pytest.raises(ValueError, match="expected a local path, got ''"):
        storage.any_path("")


def test_a_bucket_name_that_none_has_is_refused(server):
    with pytest.raises(OSError, match=r"gs://A!/x.*Invalid GCS bucket name.*check its name"):
        saved_table.load("gs://A!/x")


def test_another_process_may_write_the_same_table(bucket):
    """There is no lock: that two at once are avoided is the caller's."""
    with writer_of(storage.any_path(bucket.url)), writer_of(storage.any_path(bucket.url)):
        pass


# --- the program ---


def test_the_program_writes_goes_on_and_reads_in_a_bucket(bucket, tmp_path, capsys):
    local, out = tmp_path / "local", f"{bucket.root}/runs/x"
    assert certify.main([*OPTIONS, "--out", str(local)]) == 0
    expected = capsys.readouterr().out.split("\n\nresults in")[0]
    bucket.refuse(403, "PUT", "POST", part="runs/x/per_image.csv")
    assert certify.main([*OPTIONS, "--out", out]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {out}/per_image.csv: could not be written" in error
    assert "no permission" in error
    bucket.refuse(None)
    assert certify.main([*OPTIONS, "--out", out]) == 0
    printed = capsys.readouterr().out
    assert printed.split("\n\nresults in")[0] == expected
    assert f"results in {out}: results.json" in printed
    in_bucket, files = bucket.below(out), contents(local)
    assert set(in_bucket) == set(files)
    assert {name for name in files if in_bucket[name] != files[name]} <= {
        "results.json", "tables/table.json",
    }  # fmt: skip  # they name the time and the command
    results = json.loads(in_bucket["results.json"])
    assert results["defenses"] == json.loads(files["results.json"])["defenses"]

    assert certify.main([*OPTIONS, "--out", out]) == 0
    assert f"complete already: printed again from {out}" in capsys.readouterr().out
    for given in (out, f"{out}/tables"):
        assert certify.main(["--from-tables", given]) == 0
        assert capsys.readouterr().out.strip() == expected.strip()
    copy = f"{bucket.root}/copy"
    assert certify.main(["--from-tables", out, "--out", copy]) == 0
    assert bucket.below(copy)["per_image.csv"] == files["per_image.csv"]
    assert set(bucket.below(copy)) == set(report.FILES)
    capsys.readouterr()
    for options in (["--from-tables", out, "--out", out], [*OPTIONS, "--out", copy]):
        assert certify.main(options) == 2
        assert re.search("expected a new or empty folder", capsys.readouterr().err)
    _check_pages(bucket, out, local, capsys)


def _check_pages(bucket, out, local, capsys):
    """A page is written into a bucket as it is onto a disk, whole or not at all."""
    folder = storage.any_path(out)
    made, saved = report.read(folder), saved_table.load(folder / "tables")
    none = lambda rows: (None, "Nothing is at hand.")  # noqa: E731
    bucket.refuse(403, "PUT", "POST", part="report.html")
    assert WRITES_PAGES(made, saved, none, folder) == ()
    said = capsys.readouterr().err
    assert re.match(rf"no report.html \({out}/report.html: .*no permission", said)
    assert said.endswith(f"report {out} tries again\n")
    assert report_program.main([out]) == 2
    assert re.fullmatch(rf"error: {out}/report.html: .*no permission.*\n", capsys.readouterr().err)
    assert "report.html" not in bucket.below(out)
    bucket.refuse(None)
    assert WRITES_PAGES(made, saved, none, folder) == ("report.html",)
    assert b"Nothing is at hand." in bucket.below(out)["report.html"]
    assert report_program.main([out]) == 0
    assert capsys.readouterr().out == f"{out}/report.html\n"
    page = bucket.below(out)["report.html"].decode()
    assert "Nothing is at hand." not in page
    assert page.count('"pic":"data:image/png') == 12
    both = f"{bucket.root}/both runs.html"
    assert report_program.main([out, str(local), "--out", both]) == 0
    assert b"2 runs on the same 12 images" in bucket.objects["both runs.html"]

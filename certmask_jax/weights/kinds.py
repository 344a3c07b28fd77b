"""What a path is that was given for weights, and what to do where it is something else.

Judged by the first bytes, whatever the name says. What the operating system refuses (no permission,
a broken disk, a name that is too long) is said as it is, and never called damage.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import zipfile
from pathlib import Path

TORCH_SUFFIXES = (".pth", ".pt", ".th", ".tar", ".bin", ".ckpt")
ORBAX_MARK = "_METADATA"
"""The file that makes a folder an Orbax checkpoint."""
CARD = "certmask_jax_card.json"
"""What the card of weights that were written here is called in their file."""
READ = f"expected weights in .npz or .safetensors, an Orbax folder, or {', '.join(TORCH_SUFFIXES)}"

# What the suffix alone says, and what to do.
_OTHERS = {
    (".h5", ".hdf5", ".keras"): "Keras weights; export them under the model's names to .npz",
    (".onnx",): "an ONNX graph; save the state_dict() of the model that it was exported from",
    (".msgpack",): "Flax's msgpack; restore it with flax.serialization.msgpack_restore and save it "
    "with Orbax",
    (".gguf", ".ggml"): "llama.cpp's format, mostly quantised; take the original weights",
    (".index", ".meta", ".pb", ".tflite"): "TensorFlow's; export the variables to .npz",
    (".pkl", ".pickle"): "a pickle, which may run code on loading; save a state_dict() with "
    "torch.save or safetensors",
    (".npy",): "a single NumPy array; weights are many, saved with numpy.savez",
    (".json",): "an index or a configuration; give the file with the weights",
    (".zip", ".gz", ".xz", ".bz2", ".zst", ".7z", ".tgz"): "packed; unpack it",
    (".crdownload", ".part", ".partial", ".download", ".incomplete", ".aria2", ".tmp"): "a "
    "download that has not finished; wait for it, or start it again",
}
_MAGIC = (
    (b"\x89HDF\r\n\x1a\n", "HDF5, as Keras writes; export the arrays to .npz"),
    (b"GGUF", "llama.cpp's GGUF; take the original weights"),
    (b"\x93NUMPY", "a single NumPy array; weights are many, saved with numpy.savez"),
    (b"\x1f\x8b", "packed with gzip; unpack it"),
    (b"BZh", "packed with bzip2; unpack it"),
    (b"\xfd7zXZ", "packed with xz; unpack it"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd; unpack it"),
    (b"7z\xbc\xaf", "packed with 7-Zip; unpack it"),
)
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number before torch 1.6's zip
_HEAD = 512


def check_there(path: Path) -> bool:
    """Whether ``path`` is a folder; else it is a file that can be opened.

    Raises:
      FileNotFoundError: when there is nothing.
      OSError: when it cannot be looked at or opened, as the system says it.
      ValueError: for what is neither file nor folder.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            with open(path, "rb") as file:
                file.read(1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _missing(path) from error
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise ValueError(
            f"{path}: expected a weights file or an Orbax folder, got a device or pipe"
        )
    return stat.S_ISDIR(mode)


def check_content(path: Path, wanted: str) -> None:
    """``ValueError`` when a file's first bytes say that it is not of the ``wanted`` format.

    Args:
      wanted: ``"npz"``, ``"safetensors"`` or ``"torch"``. What is not recognised passes: reading
        it gives the better error.
    """
    content = _content(path)
    if content is None or content[0] == wanted:
        return
    kind, about = content
    if kind in _NAMES:
        about = f"{about}; give it a name that ends in {_NAMES[kind]}"
    raise ValueError(f"{path}: expected a readable {path.suffix} file, but it is {about}")


def other_suffix(path: Path) -> ValueError:
    """What to say of a file whose suffix is none of those that are read."""
    suffix = path.suffix.lower()
    about = next((text for ends, text in _OTHERS.items() if suffix in ends), None)
    if (path.parent / ORBAX_MARK).is_file():
        about = f"a file of an Orbax checkpoint; give its folder, {path.parent}"
    content = None if about else _content(path)
    if content is not None and content[0] in _NAMES:
        about = f"{content[1]}; give it a name that ends in {_NAMES[content[0]]}"
    elif content is not None:
        about = content[1]
    return ValueError(f"{path}: {READ}" + (f"; this is {about}" if about else ""))


def other_folder(path: Path) -> ValueError:
    """What to say of a folder that is no Orbax checkpoint."""
    names = sorted(os.listdir(path))
    steps = sorted(int(name) for name in names if name.isdecimal())
    inside = [name for name in names if (path / name / ORBAX_MARK).is_file()]
    files = [
        n for n in names if Path(n).suffix.lower() in (".npz", ".safetensors", *TORCH_SUFFIXES)
    ]
    if steps:
        hint = f"; give one of its steps, such as {path / str(steps[-1])}"
    elif inside:
        hint = f"; it holds {', '.join(inside)}: give one, such as {path / inside[0]}"
    elif "saved_model.pb" in names or any(name.endswith(".index") for name in names):
        hint = "; it is TensorFlow's: export the variables to .npz"
    elif "data.pkl" in names or any((path / name / "data.pkl").is_file() for name in names):
        hint = "; it is an unpacked PyTorch file: give the file itself, as it was saved"
    elif files:
        hint = f"; give the file in it, such as {path / files[0]}"
    else:
        hint = ""
    return ValueError(f"{path}: {READ}; this folder has no Orbax checkpoint in it{hint}")


def unreadable(path: Path, error: OSError) -> OSError:
    """What the system says of a path that cannot be read: no damage, and no advice to fetch it."""
    why = error.strerror or str(error).split("\n")[0]
    kind = PermissionError if isinstance(error, PermissionError) else OSError
    return kind(f"{path}: expected to read it ({why})")


def damaged(path: Path, error: Exception) -> Exception:
    """What to say when a file of the right kind cannot be decoded.

    An error that the operating system gave (it has a number) is no damage.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return unreadable(path, error)
    code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's
    if code is not None and int(code[1]) != errno.ENOENT:
        number = int(code[1])
        return unreadable(path, OSError(number, os.strerror(number)))
    why = (str(error) or type(error).__name__).strip().split("\n")[0][:200]
    what = "Orbax folder" if path.is_dir() else f"{path.suffix} file"
    return ValueError(
        f"{path}: expected a readable {what}, but it is truncated or damaged ({why}); if it is "
        "still being written or downloaded wait for that, else fetch it again"
    )


def more_than_weights(path: Path, what: str) -> ValueError:
    """What to say of a file that holds pickled objects."""
    return ValueError(
        f"{path}: expected weights only, got {what} too, which may run code on loading. Where you "
        "trust the file, convert it once: python -c \"import torch; found = torch.load('IN', "
        "weights_only=False, map_location='cpu'); torch.save(found['state_dict'], 'OUT.pth')\" "
        "(a pickled model: found.state_dict())"
    )


_NAMES = {"npz": ".npz", "safetensors": ".safetensors", "torch": ".pth"}


def _missing(path: Path) -> Exception:
    if path.is_symlink():
        return FileNotFoundError(
            f"{path}: expected a weights file, found a link to {os.readlink(path)}, which is not "
            "there"
        )
    if path.name and path.with_name(f"{path.name}.index").is_file():
        return FileNotFoundError(
            f"{path}: expected a weights file, found a TensorFlow checkpoint of that name "
            f"({path.name}.index, ...); export its variables to .npz"
        )
    return FileNotFoundError(f"{path}: expected a weights file, found none{_address_like(path)}")


def _address_like(path: Path) -> str:
    """What to write for a name of somewhere else, which is taken for a path without its scheme."""
    with contextlib.suppress(ValueError, OSError):  # of another drive, or no folder to be in
        name = path.relative_to(Path.cwd()).as_posix() if path.is_absolute() else path.as_posix()
        match = re.fullmatch(r"(?:(?i:hf|timm|pip):)?([\w.-]+/[\w.-]+)", name)
        if match and not path.parent.is_dir():
            return f"; what the Hugging Face Hub has is hf:{match[1]}"
    return ""


def _content(path: Path) -> tuple[str, str] | None:
    """A word and a description of what a file's bytes say that it is; None when they do not."""
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise unreadable(path, error) from error
    if size == 0:
        return "empty", "empty (truncated, or it is empty still, while a download begins)"
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head.startswith(_OLD_TORCH):
        return "torch", "a PyTorch file"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < size:
        return "safetensors", "safetensors"
    for magic, about in _MAGIC:
        if head.startswith(magic):
            return "other", about
    if head[257:262] == b"ustar":
        return "other", "a tar archive; unpack it and give the file in it"
    return _text(head)


def _zip(path: Path) -> tuple[str, str] | None:
    if not zipfile.is_zipfile(path):
        return None  # cut short
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None
    if any(name.endswith("/data.pkl") or name == "data.pkl" for name in names):
        return "torch", "a PyTorch file"
    if any(n != CARD for n in names) and all(n.endswith(".npy") or n == CARD for n in names):
        return "npz", "NumPy's .npz"
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        return "other", "a Keras model; export its arrays to .npz"
    return "other", "a zip archive without weights in it; if it was packed, unpack it"


def _text(head: bytes) -> tuple[str, str] | None:
    if len(head) < 16 or b"\0" in head:
        return None
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n")
    if "\ufffd" in text[:-4]:
        return None
    if text.startswith("version https://git-lfs"):
        return "other", "a pointer of Git LFS; fetch the file itself (git lfs pull)"
    if re.match(r"<(!doctype|html|\?xml|head|body)", text, re.IGNORECASE):
        return "other", (
            "a web page (HTML or XML) saved under that name, such as a login or an error; fetch "
            "the file itself"
        )
    if all(char.isprintable() or char in "\t\r\n" for char in text):
        return "other", "text, no weights; fetch the file itself"
    return None

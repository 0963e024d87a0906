"""No bundle reaches outside of itself: names, links and special files, refused by the C++ runtime as by Python's."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from eecompile import contract as c
from eecompile.bundle.digest import document_digest, document_layout
from eecompile.errors import EECompileError
from eecompile.runtime import Bundle

NAMES = (
    "../outside", "a/../../outside", "a/..", "..", ".", "./a", "a/./b", "a//b", "a/", "/etc/passwd", "//etc/passwd",
    "a\\b",
    "..\\outside", "C:\\outside", "C:outside", "a:b", "a\nb", "a\x01b", "a\x7fb", "\x00", "", "x" * 201, "a/" * 120,
    "Segments/head.onnx", "segments/HEAD.onnx", "manifest.json", "MANIFEST.json", "overlays/policy.json", "overlays/x",
    "engines/x", "report.html", "manifest.json.sig",
)  # fmt: skip
GRAPHS = ("../outside.onnx", "/etc/passwd", "segments/../segments/head.onnx", "segments//head.onnx",
          "./segments/head.onnx", "overlays/policy.json", "")  # fmt: skip
FILE = "segments/head.onnx"


def rewritten(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and give it the digest of what it then says."""
    document = json.loads((root / c.MANIFEST).read_text())
    change(document)
    document["digest"] = document_digest(document)
    (root / c.MANIFEST).write_bytes(document_layout(document))


def listed(name: str) -> Callable[[Path], None]:
    """A file of that name in the manifest; on disk, too, where that stays inside of the bundle."""
    entry = {name: {"bytes": 0, "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}

    def change(root: Path) -> None:
        rewritten(root, lambda document: document["files"].update(entry))
        inside = name and "\x00" not in name and len(name) < 201 and not name.startswith("/") and ".." not in name
        if inside and name.strip("./") and not name.endswith("/") and not (root / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()

    return change


def graph(name: str) -> Callable[[Path], None]:
    return lambda root: rewritten(root, lambda document: document["graphs"]["head"].update(path=name))


def replaced(make: Callable[[Path], object], name: str = FILE) -> Callable[[Path], None]:
    """Something else in the place of a file; what was there lies beside the bundle."""

    def change(root: Path) -> None:
        (root / name).rename(root.parent / "outside")
        make(root / name)

    return change


def in_place_of_a_folder(root: Path) -> None:
    (root / "segments").rename(root.parent / "segments")
    (root / "segments").symlink_to(root.parent / "segments", target_is_directory=True)


def bound(path: Path) -> None:
    """A socket; its address has to be short."""
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("this user may make no device")


DISKS: Mapping[str, Callable[[Path], object]] = {
    "a-link-to-the-file": replaced(lambda path: path.symlink_to("../../outside")),
    "a-hard-way-out": replaced(lambda path: path.symlink_to("/etc/passwd")),
    "a-dangling-link": replaced(lambda path: path.symlink_to("nowhere")),
    "a-link-to-itself": replaced(lambda path: path.symlink_to(path.name)),
    "a-folder": replaced(lambda path: path.mkdir()),
    "a-pipe": replaced(os.mkfifo),
    "a-socket": replaced(bound),
    "a-device": replaced(device),
    "the-manifest-by-a-link": replaced(lambda path: path.symlink_to("../outside"), c.MANIFEST),
    "the-manifest-a-pipe": replaced(os.mkfifo, c.MANIFEST),
    "the-manifest-a-folder": replaced(lambda path: path.mkdir(), c.MANIFEST),
    "the-policy-by-a-link": replaced(lambda path: path.symlink_to("../../outside"), c.POLICY),
    "the-policy-a-pipe": replaced(os.mkfifo, c.POLICY),
    "a-folder-by-a-link": in_place_of_a_folder,
    "a-link-more": lambda root: (root / "more").symlink_to("/"),
    "a-calibration-by-a-link": lambda root: (root / "overlays" / "calibration-x.json").symlink_to("policy.json"),
    "a-link-among-engines": lambda root: ((root / "engines").mkdir(), (root / "engines" / "x").symlink_to("/")),
    "names-of-one-case": lambda root: shutil.copy(root / FILE, root / "segments" / "HEAD.onnx"),
    "a-colon": lambda root: (root / "a:b").touch(),
    "a-control-character": lambda root: (root / "a\x02b").touch(),
}
CASES = {
    **{f"file {name!r:.40}": listed(name) for name in NAMES},
    **{f"graph {name!r}": graph(name) for name in GRAPHS},
    **DISKS,
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_leads_out_of_a_bundle(
    shelf: Any, command: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)  # where what makes a socket may go on from
    root = shutil.copytree(shelf.bundle(at=[1, 3], gain=0.35).files.path, tmp_path / "bundle")
    CASES[case](root)
    with pytest.raises(EECompileError) as refused:
        Bundle.open(root, integrity="hash")
    done = subprocess.run([command, root, "--prompt-ids", "1"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (refused.value.exit_status, ""), done.stderr
    assert done.returncode == 4
    assert "mend:" in done.stderr


def test_a_bundle_may_itself_be_reached_by_a_link(shelf: Any, command: Path, tmp_path: Path) -> None:
    opened = shelf.bundle(at=[1, 3], gain=0.35)
    (tmp_path / "link").symlink_to(opened.files.path)
    words = [command, tmp_path / "link", "--prompt-ids", "1", "--max-new-tokens", "2", "--threads", str(opened.threads)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

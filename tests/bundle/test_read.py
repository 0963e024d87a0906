"""Every way in which a bundle's manifest and files may be wrong is refused, each with its own message."""

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import CALIBRATION, PROFILE, accept_manifest, edit_document, refuse

from eecompile import contract as c
from eecompile.bundle import paths
from eecompile.bundle.digest import document_layout
from eecompile.bundle.read import read_bundle
from eecompile.errors import IntegrityError

Edit = Callable[[dict[str, Any]], object]
WEIGHTS = "segments/all.weights"


def test_an_intact_bundle_is_read(bundle: Path) -> None:
    files = read_bundle(bundle)
    assert files.path == bundle
    assert files.policy.exits[0].confident == {"learned": 0.9, "max_prob": 0.8}
    assert len(files.calibrations) == len(files.profiles) == 1
    assert WEIGHTS in files.manifest.files


def test_what_may_lie_outside_the_core(bundle: Path) -> None:
    for name in ("report.html", "engines/orin/segment_0.plan", "overlays/.policy.json.tmp-1234-0a1b2c3d"):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(b"anything")
    assert read_bundle(bundle) == read_bundle(bundle, integrity="size")


def test_the_directory_may_be_a_link_and_files_hard_links(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(bundle, target_is_directory=True)
    os.link(bundle / WEIGHTS, tmp_path / "hard")
    assert read_bundle(tmp_path / "link").path == bundle


def test_no_bundle_there(bundle: Path, tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "not a directory")
    refuse(bundle / c.MANIFEST, "not a directory")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", "no manifest.json")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refuse(tmp_path / "loop", "not a directory")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON: Expecting value at line 1"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' stands twice"),
        (b'{"a": NaN}', "the number NaN is not finite"),
        (b'{"a": -Infinity}', "the number -Infinity is not finite"),
        (b'{"a": 1e999}', "the number 1e999 is not finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON that a reader accepts"),
        (b'{"a": ' + b"[" * 200_000, "nested too deeply"),
        (b"{}", "not the manifest of an eecompile bundle"),
        (b'{"format": "eecompile-bundle", "version": 0}', "unknown format version 0"),
        (b'{"format": "eecompile-bundle", "version": true}', "unknown format version True"),
        (b'{"format": "eecompile-bundle", "version": 2}', "made by a newer eecompile: format version 2"),
    ],
)
def test_the_manifest_is_no_manifest(bundle: Path, data: bytes, message: str) -> None:
    (bundle / c.MANIFEST).write_bytes(data)
    refuse(bundle, message)


def test_the_manifest_is_no_regular_file(bundle: Path) -> None:
    path = bundle / c.MANIFEST
    path.rename(bundle / "report.html")
    path.symlink_to("report.html")
    refuse(bundle, "symbolic link")
    path.unlink()
    os.mkfifo(path)
    refuse(bundle, "not a regular file")
    path.unlink()
    path.mkdir()
    refuse(bundle, "not a regular file")


def test_the_manifest_is_too_large(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c, "MAX_MANIFEST_BYTES", 100)
    refuse(bundle, "more than the 100 a reader accepts")


def _select(manifest: dict[str, Any], **tensor: Any) -> None:
    manifest["kv_rules"] = ["catch_up", "selected"]
    kept = {"name": c.KEY_POSITIONS, "dtype": "int64", "shape": ["B", 1, "T", 1]}
    manifest["graphs"]["segments"][0]["inputs"].append(kept | tensor)


def _propagate(manifest: dict[str, Any], graphs: list[Any]) -> None:
    manifest["kv_rules"] = ["catch_up", "propagate"]
    manifest["graphs"]["kv"] = graphs


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(surprise=1), "surprise: Extra inputs are not permitted"),
        (lambda m: m.pop("caches"), "caches: Field required"),
        (lambda m: m.update(slots="1"), "slots: Input should be a valid integer"),
        (lambda m: m.update(slots=True), "slots: Input should be a valid integer"),
        (lambda m: m.update(slots=-1), "slots: Input should be greater"),
        (lambda m: m["model"].update(vocab=1 << 40), "model.vocab: Input should be less"),
        (lambda m: m["model"].update(heads=3, kv_heads=2), "cannot share 2 key/value heads"),
        (lambda m: m["model"].update(eos=[10]), "not in the vocabulary"),
        (lambda m: m["exits"][0].update(gates=["max_prob"]), "gate_units is the width"),
        (lambda m: m["exits"][0].update(gates=["learned", "learned"]), "a gate is named twice"),
        (lambda m: m["schedule"][0].update(segment=7), "missing segment 7"),
        (lambda m: m["schedule"][1].update(cache=0), "does not use every cache once"),
        (lambda m: m["schedule"].reverse(), "is not where it is"),
        (lambda m: m["schedule"].pop(), "does not run the model's layers"),
        (lambda m: m["graphs"]["exits"].clear(), "1 exits but 0 exit graphs"),
        (lambda m: m.update(kv_rules=["propagate"]), "the K/V rules are not catch_up and others"),
        (lambda m: m.update(kv_rules=["catch_up"] * 2), "the K/V rules are not catch_up and others"),
        (lambda m: m.update(kv_rules=["catch_up", "propagate"]), "needs a place for a K/V-only graph"),
        (lambda m: m["graphs"].update(kv=[None] * 3), "needs a place for a K/V-only graph"),
        (lambda m: _propagate(m, [None, None]), "segment 1 has no K/V-only graph of its layers"),
        (lambda m: _propagate(m, [None, {**m["graphs"]["segments"][1], "layers": 2}]), "segment 1 has no K/V-only"),
        (lambda m: (_select(m), m.update(kv_rules=["catch_up"])), "key positions are kept for the rule selected alone"),
        (lambda m: _select(m, dtype="float32"), "key positions are not int64"),
        (lambda m: _select(m, shape=["B", "T"]), "key positions are not int64"),
        (lambda m: m.update(cache="int4"), "cache: Input should be"),
        (lambda m: m.update(pending_cap=100), "slack is smaller"),
        (lambda m: m["files"][WEIGHTS].update(sha256="0"), "sha256: String should match pattern"),
    ],
)
def test_the_manifest_breaks_the_schema(bundle: Path, edit: Edit, message: str) -> None:
    edit_document(bundle / c.MANIFEST, edit)
    refuse(bundle, f"does not follow the schema: .*{message}")


def test_an_edited_manifest(bundle: Path) -> None:
    edit_document(bundle / c.MANIFEST, lambda m: m.update(slots=2), digest=False)
    refuse(bundle, "does not agree with its own digest")


def test_another_layout(bundle: Path) -> None:
    for name in (c.MANIFEST, CALIBRATION):
        intact = (bundle / name).read_bytes()
        (bundle / name).write_text(json.dumps(json.loads(intact)))
        refuse(bundle, "not in the layout that eecompile writes")
        (bundle / name).write_bytes(intact)


def relist(bundle: Path, name: str) -> None:
    """Call the weights `name` in the manifest."""
    edit_document(bundle / c.MANIFEST, lambda m: m["files"].update({name: m["files"].pop(WEIGHTS)}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/etc/passwd", "the path is absolute"),
        ("../all.weights", "empty, '.' or '..' component"),
        ("segments/../all.weights", "empty, '.' or '..' component"),
        ("./all.weights", "empty, '.' or '..' component"),
        ("segments//all.weights", "empty, '.' or '..' component"),
        ("segments/", "empty, '.' or '..' component"),
        ("segments\\all.weights", "holds a backslash"),
        ("C:/all.weights", "holds a backslash, a colon"),
        ("all\0weights", "cannot be printed"),
        ("all\x1b[31mweights", "cannot be printed"),
        ("manifest.json", "not of the core"),
        ("overlays/policy.json", "not of the core"),
        ("overlays/more.json", "not of the core"),
        ("engines/x.plan", "not of the core"),
        ("report.html", "not of the core"),
    ],
)
def test_illegal_file_names(bundle: Path, name: str, message: str) -> None:
    relist(bundle, name)
    refuse(bundle, message)


def test_names_that_differ_in_case_only(bundle: Path) -> None:
    shutil.copy(bundle / WEIGHTS, bundle / "segments" / "ALL.weights")
    refuse(bundle, "are one on some file systems")
    (bundle / "segments" / "ALL.weights").unlink()
    edit_document(bundle / c.MANIFEST, lambda m: m["files"].update({"Segments/all.weights": m["files"][WEIGHTS]}))
    refuse(bundle, "are one on some file systems")


def test_names_that_differ_in_normalisation_only(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    for name in ("\u00e9", "e\u0301"):
        (bundle / "engines" / name).touch()
    refuse(bundle, "are one on some file systems")


def test_files_that_are_missing_truncated_or_changed(bundle: Path) -> None:
    path = bundle / WEIGHTS
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    refuse(bundle, "all.weights: truncated or changed: 63 bytes instead of 64", integrity="size")
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refuse(bundle, "all.weights: changed: its SHA-256")
    read_bundle(bundle, integrity="size")
    path.unlink()
    refuse(bundle, "all.weights: the file is missing")
    path.mkdir()
    refuse(bundle, "all.weights: the file is missing")


@pytest.mark.parametrize(
    "name",
    ["stray", "segments/stray", "runtime/main.cpp", "overlays/stray.json", "overlays/deep/policy.json", "stray.sig",
     "overlays/profile-a b.json", "overlays/.policy.json.tmp", "segments/all.weights.sig"],
)  # fmt: skip
def test_extra_files(bundle: Path, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).touch()
    refuse(bundle, "a file that the manifest does not list")


def test_links_in_the_bundle(bundle: Path, tmp_path: Path) -> None:
    path = bundle / WEIGHTS
    path.rename(tmp_path / "weights")
    path.symlink_to(tmp_path / "weights")
    refuse(bundle, "all.weights: a symbolic link")
    path.unlink()
    (tmp_path / "weights").rename(path)
    (bundle / "engines").symlink_to(tmp_path)
    refuse(bundle, "engines: a symbolic link")
    (bundle / "engines").unlink()
    (bundle / "segments").rename(tmp_path / "segments")
    (bundle / "segments").symlink_to(tmp_path / "segments")
    refuse(bundle, "segments: a symbolic link")


def test_special_files(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bundle / "engines").mkdir()
    os.mkfifo(bundle / "engines" / "fifo")
    refuse(bundle, "fifo: neither a regular file nor a directory")
    (bundle / "engines" / "fifo").unlink()
    monkeypatch.chdir(bundle)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("engines/socket")
        refuse(bundle, "socket: neither a regular file nor a directory")


def test_names_on_disk_that_cannot_be_printed(bundle: Path) -> None:
    (bundle / "engines").mkdir()
    name = os.fsencode(bundle / "engines") + b"/\xff\x1b[2J"
    with open(name, "wb"):
        pass
    with pytest.raises(IntegrityError, match="not a legal name") as caught:
        read_bundle(bundle)
    assert caught.value.where.isprintable()


def test_too_many_entries(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "MAX_ENTRIES", 5)
    refuse(bundle, "more than 5 files and directories")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable(bundle: Path) -> None:
    (bundle / WEIGHTS).chmod(0)
    refuse(bundle, "cannot be read")


def test_profiles_and_policy_of_another_core(bundle: Path) -> None:
    edit_document(bundle / PROFILE, lambda d: d.update(core="0" * 64))
    refuse(bundle, "profile-here.json: made for another build")
    (bundle / PROFILE).unlink()
    (bundle / c.POLICY).unlink()
    refuse(bundle, "policy.json: there is no policy")
    (bundle / CALIBRATION).unlink()
    shutil.rmtree(bundle / "overlays")
    refuse(bundle, "policy.json: there is no policy")


def test_a_rewritten_but_consistent_core_is_read(bundle: Path) -> None:
    edit_document(bundle / c.MANIFEST, lambda m: m["provenance"].update(source="elsewhere"))
    refuse(bundle, "names another core")
    accept_manifest(bundle)
    assert read_bundle(bundle).manifest.provenance["source"] == "elsewhere"


def test_an_overlay_that_is_no_overlay(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bundle / PROFILE
    edit_document(path, lambda d: d.update(surprise=1))
    refuse(bundle, "profile-here.json: does not follow the schema: surprise")
    path.write_bytes(document_layout({"kind": "policy"}))
    refuse(bundle, "profile-here.json: does not follow the schema: kind")
    path.write_bytes(b"{")
    refuse(bundle, "profile-here.json: not JSON")
    monkeypatch.setattr(c, "MAX_OVERLAY_BYTES", 0)
    refuse(bundle, "more than the 0 a reader accepts")

"""Signatures hold for one file of one name by one key, and a bundle that has to be signed is signed entirely."""

import json
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tiny_bundle import CALIBRATION, PROFILE, edit_document, profile_fields, refuse

from eecompile import contract as c
from eecompile.bundle.read import read_bundle
from eecompile.bundle.sign import (
    load_private_key,
    load_public_key,
    new_key,
    sign_bundle,
    signatures,
    verify_signatures,
)
from eecompile.bundle.write import write_overlay
from eecompile.errors import EECompileError, IntegrityError, UsageError

SIGNED = [c.MANIFEST, CALIBRATION, c.POLICY, PROFILE]


def public(key: Path) -> Path:
    return key.with_name(key.name + ".pub")


def test_a_signed_bundle(signed: Path, keys: tuple[Path, Path]) -> None:
    assert verify_signatures(signed, public(keys[0])) == SIGNED
    assert read_bundle(signed, key=keys[0]) == read_bundle(signed, key=public(keys[0])) == read_bundle(signed)
    assert sign_bundle(signed, keys[0]) == SIGNED
    names = {s.key for s in signatures(signed).values() if s}
    assert len(names) == 1


def test_the_wrong_key(signed: Path, keys: tuple[Path, Path]) -> None:
    refuse(signed, "manifest.json: signed by the key", key=public(keys[1]))
    with pytest.raises(IntegrityError, match="signed by the key"):
        verify_signatures(signed, keys[1])
    ours = json.loads((signed / "manifest.json.sig").read_text())["key"]
    sign_bundle(signed, keys[1])
    edit_document(signed / "manifest.json.sig", lambda d: d.update(key=ours), digest=False)
    refuse(signed, "manifest.json: the signature does not hold", key=keys[0])


def test_no_signature(bundle: Path, keys: tuple[Path, Path]) -> None:
    refuse(bundle, "manifest.json: not signed", key=keys[0])
    assert signatures(bundle) == dict.fromkeys(SIGNED)


@pytest.mark.parametrize("name", SIGNED)
def test_every_file_has_to_be_signed(signed: Path, keys: tuple[Path, Path], name: str) -> None:
    path = signed / (name + ".sig")
    data = path.read_bytes()
    path.unlink()
    refuse(signed, f"{name}: not signed", key=keys[0])
    other = CALIBRATION if name == c.MANIFEST else c.MANIFEST
    path.write_bytes((signed / (other + ".sig")).read_bytes())
    refuse(signed, f"{name}: the signature does not hold", key=keys[0])
    path.write_bytes(data)
    (signed / name).write_bytes((signed / name).read_bytes() + b" ")
    refuse(signed, f"{name}: the signature does not hold", key=keys[0])


def test_a_signature_of_another_name(signed: Path, keys: tuple[Path, Path]) -> None:
    for suffix in ("", ".sig"):
        (signed / "overlays" / f"profile-copy.json{suffix}").write_bytes((signed / (PROFILE + suffix)).read_bytes())
    refuse(signed, "profile-copy.json: the signature does not hold", key=keys[0])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d.update(algorithm="none"), "algorithm: Input should be 'Ed25519'"),
        (lambda d: d.update(signature="AAAA"), "signature: String should match"),
        (lambda d: d.update(signature="A" * 85 + "B=="), "stray bits"),
        (lambda d: d.update(more=1), "more: Extra inputs"),
        (lambda d: d.pop("key"), "key: Field required"),
    ],
)
def test_malformed_signatures(signed: Path, keys: tuple[Path, Path], edit: object, message: str) -> None:
    edit_document(signed / "manifest.json.sig", edit, digest=False)  # type: ignore[arg-type]
    refuse(signed, message, key=keys[0])


def test_signatures_in_another_layout(signed: Path, keys: tuple[Path, Path]) -> None:
    path = signed / "manifest.json.sig"
    path.write_text(json.dumps(json.loads(path.read_text())))
    refuse(signed, "another program", key=keys[0])
    path.write_bytes(b" " * 5000)
    refuse(signed, "more than the 4096", key=keys[0])


def test_a_bundle_that_is_not_intact_is_not_signed(bundle: Path, keys: tuple[Path, Path]) -> None:
    weights = bundle / "segments/all.weights"
    weights.write_bytes(bytes(64))
    with pytest.raises(IntegrityError, match="its SHA-256"):
        sign_bundle(bundle, keys[0])
    assert not (bundle / "manifest.json.sig").exists()


def test_overlays_are_signed_as_they_are_written(signed: Path, keys: tuple[Path, Path]) -> None:
    fields = {**profile_fields(), "threads": 3}
    write_overlay(signed, PROFILE, fields, key=keys[0])
    assert read_bundle(signed, key=keys[0]).profiles[0].threads == 3
    write_overlay(signed, PROFILE, {**fields, "threads": 4})
    assert not (signed / (PROFILE + ".sig")).exists()
    refuse(signed, "profile-here.json: not signed", key=keys[0])
    with pytest.raises(UsageError, match="private key"):
        write_overlay(signed, PROFILE, fields, key=public(keys[0]))


def test_new_keys(tmp_path: Path) -> None:
    path = tmp_path / "key"
    name = new_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(name) == 64
    assert load_public_key(path) == load_public_key(public(path)) == load_private_key(path).public_key()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="a key already"):
        new_key(path)
    path.rename(tmp_path / "moved")
    with pytest.raises(UsageError, match="a key already"):
        new_key(path)
    assert (tmp_path / "moved").read_bytes() == before
    public(path).unlink()
    (tmp_path / "moved").rename(path)
    with pytest.raises(UsageError, match="a key already"):
        new_key(path)
    assert sorted(os.listdir(tmp_path)) == ["key"]
    with pytest.raises(EECompileError, match="cannot be written"):
        new_key(tmp_path / "no" / "key")


def test_no_keys(tmp_path: Path, bundle: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_bundle(bundle, key=tmp_path / "none")
    path = tmp_path / "key"
    exchange = X25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    private = exchange.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    other = exchange.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    locked = load_private_key(keys[0]).private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    )
    for data in (b"", b"garbage", private, other, locked):
        path.write_bytes(data)
        with pytest.raises(UsageError, match="not an Ed25519 private key"):
            load_private_key(path)
        with pytest.raises(UsageError, match=r"not an Ed25519 (public|private) key"):
            load_public_key(path)

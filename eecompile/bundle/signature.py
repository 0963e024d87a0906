"""Ed25519 keys and detached signatures of single files; `sign.py` applies them to bundles.

The signed message is a domain prefix, the file's name in the bundle, a zero byte and the SHA-256 of its bytes, so
that no signature serves another file or another purpose. `<file>.sig` is JSON: algorithm, key id, signature.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Annotated, Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from eecompile import contract as c
from eecompile.bundle.digest import document_layout
from eecompile.bundle.disk import disk_faults
from eecompile.bundle.strict import fault, parse_object, read_regular, validated
from eecompile.errors import EECompileError, UsageError
from eecompile.schema import Sha256, Strict

_PREFIX = b"eecompile bundle signature 1\0"
_MAX_KEY_BYTES = 1 << 16
_MAX_SIGNATURE_BYTES = 4096
SIGN_AGAIN = "sign it again with `eecompile sign BUNDLE --key KEY`, or get a bundle signed by this key"


class Signature(Strict):
    """`<file>.sig`. `key` is the SHA-256 of the raw public key, `signature` the base64 of 64 bytes."""

    algorithm: Literal["Ed25519"] = "Ed25519"
    key: Sha256
    signature: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]{86}==$")]


def new_key(path: Path) -> str:
    """Write a new private key to `path` (PEM PKCS8, mode 0600) and its public key to PATH.pub; return the key id.

    Raises UsageError where either file exists and EECompileError where they cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    public = path.with_name(path.name + ".pub")
    encoding, subject = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    secret = private.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    if os.path.lexists(public):
        raise UsageError("there is a key already", where=str(public), mend="choose another name")
    _write_new(path, secret, 0o600)
    try:
        _write_new(public, private.public_key().public_bytes(encoding, subject), 0o644)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return key_id(private.public_key())


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """The Ed25519 private key in a PEM file. Raises UsageError."""
    try:
        key = serialization.load_pem_private_key(_read_key(path), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _not_a_key("private", path) from e
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_a_key("private", path)
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """The Ed25519 public key in a PEM file, or of the private key in it. Raises UsageError."""
    data = _read_key(path)
    if b"PRIVATE KEY" in data:
        return load_private_key(path).public_key()
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise _not_a_key("public", path) from e
    if not isinstance(key, Ed25519PublicKey):
        raise _not_a_key("public", path)
    return key


def key_id(key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the raw public key."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()


def signature_document(name: str, data: bytes, key: Ed25519PrivateKey) -> bytes:
    """The bytes of `<name>.sig` for a file of the bundle called `name` that holds `data`."""
    signed = base64.b64encode(key.sign(_message(name, data))).decode()
    signature = Signature(key=key_id(key.public_key()), signature=signed)
    return document_layout(signature.model_dump(mode="json"))


def read_signature(root: Path, name: str) -> Signature | None:
    """The signature that lies beside `name`, unverified, or None. Raises IntegrityError where it is malformed."""
    path = root / (name + c.SIGNATURE_SUFFIX)
    if not os.path.lexists(path):
        return None
    data = read_regular(path, _MAX_SIGNATURE_BYTES)
    signature = validated(Signature, parse_object(data, path), path)
    if document_layout(signature.model_dump(mode="json")) != data:
        raise fault("the signature was written or edited by another program", path, SIGN_AGAIN)
    return signature


def verify_file(root: Path, name: str, data: bytes, key: Ed25519PublicKey) -> None:
    """Check that `data`, the content of `name` in the bundle, is signed by `key`. Raises IntegrityError."""
    signature = read_signature(root, name)
    if signature is None:
        raise fault("not signed", root / name, SIGN_AGAIN)
    if signature.key != key_id(key):
        raise fault(f"signed by the key {signature.key[:16]}, not by {key_id(key)[:16]}", root / name, SIGN_AGAIN)
    raw = base64.b64decode(signature.signature)
    if base64.b64encode(raw).decode() != signature.signature:
        raise fault("the signature does not hold: stray bits in its base64", root / name, SIGN_AGAIN)
    try:
        key.verify(raw, _message(name, data))
    except InvalidSignature as e:
        raise fault("the signature does not hold: the file was changed", root / name, SIGN_AGAIN) from e


def _message(name: str, data: bytes) -> bytes:
    return _PREFIX + name.encode() + b"\0" + hashlib.sha256(data).digest()


def _read_key(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(_MAX_KEY_BYTES)
    except OSError as e:
        raise UsageError(f"the key cannot be read ({e.strerror})", where=str(path), mend="check --key") from e


def _not_a_key(kind: str, path: Path) -> UsageError:
    mend = "give an Ed25519 key in PEM without a password; `eecompile sign BUNDLE --key FILE --new-key` makes one"
    return UsageError(f"not an Ed25519 {kind} key", where=str(path), mend=mend)


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError as e:
        raise UsageError("there is a key already", where=str(path), mend="choose another name") from e
    except OSError as e:
        raise EECompileError(f"cannot be written ({e.strerror})", where=str(path), mend="choose another place") from e
    try:
        with disk_faults(path), open(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        path.unlink(missing_ok=True)
        raise

"""What is done with files everywhere: forced to the disk, hashed a megabyte at a time."""

import hashlib
import os
from io import FileIO
from pathlib import Path

_CHUNK = 1 << 20


def sync(path: Path) -> None:
    """Force a file's or directory's content to the disk. Raises OSError."""
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sha256_of_file(file: FileIO) -> str:
    """SHA-256 (hex) of what is left to read of an unbuffered file. Raises OSError."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    while count := file.readinto(buffer):
        digest.update(buffer[:count])
    return digest.hexdigest()

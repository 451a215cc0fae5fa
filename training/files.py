"""Files that are whole or not there at all."""

import json
import os
import pathlib
import tempfile
from typing import Any


def write_json(path: pathlib.Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all: a reader never sees half of it.

    Args:
        path: Where; the directory exists.
        content: Plain JSON types.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}.", delete=False, encoding="utf-8"
    ) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # temporary files are private otherwise
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise

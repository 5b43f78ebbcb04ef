"""Writes python/amk/schemas/*.json anew: `python tests/python/write_schemas.py`, after a dataclass has changed."""

import json
from pathlib import Path

from amk.schema import make_schemas

FOLDER = Path(__file__).resolve().parents[2] / "python" / "amk" / "schemas"


def text_of(schema: dict) -> str:
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    for name, schema in make_schemas().items():
        (FOLDER / f"{name}.json").write_text(text_of(schema), encoding="utf-8")

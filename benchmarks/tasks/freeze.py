"""Writes workloads.json of a task from the rows its make_rows.py declares, and its SHA-256 into task.toml.

Usage: python benchmarks/tasks/freeze.py NAME [--check]. With --check nothing is written: exit status 1 if the files
differ from what would be. Changing rows makes every earlier result of the task incomparable.
"""

import argparse
import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def text_of(name: str, rows: list) -> str:
    """One row a line, so that a change shows as what it is."""
    head = {"schema": "amk.workloads", "schema_version": 1, "task": name}
    lines = ",\n".join("  " + json.dumps(row) for row in rows)
    return json.dumps(head)[:-1] + f', "rows": [\n{lines}\n]}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    folder = HERE / options.name
    spec = importlib.util.spec_from_file_location("make_rows", folder / "make_rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = text_of(options.name, module.rows())
    digest = hashlib.sha256(text.encode()).hexdigest()
    toml_path = folder / "task.toml"
    toml = toml_path.read_text(encoding="utf-8")
    new_toml, n = re.subn(r'(?m)^workloads_sha256 = "[0-9a-f]*"$', f'workloads_sha256 = "{digest}"', toml)
    if n != 1:
        print(f'{toml_path}: expected one line workloads_sha256 = "...", found {n}', file=sys.stderr)
        return 2
    workloads = folder / "workloads.json"
    same = workloads.exists() and workloads.read_text(encoding="utf-8") == text and toml == new_toml
    if not options.check and not same:
        workloads.write_text(text, encoding="utf-8")
        toml_path.write_text(new_toml, encoding="utf-8")
    print(f"{options.name}: {len(module.rows())} rows, {digest}{'' if same else ', changed'}")
    return 1 if options.check and not same else 0


if __name__ == "__main__":
    sys.exit(main())

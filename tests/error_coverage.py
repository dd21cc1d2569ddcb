"""Which `raise UserError` the tests executed: python tests/error_coverage.py DATA_FILE (of coverage.py)."""

import ast
import sys
from pathlib import Path

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "pipeline", "teachers", "students", "eval")


def error_sites(path: Path) -> list[int]:
    """The lines on which a source file raises a UserError."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    raised = (node for node in ast.walk(tree) if isinstance(node, ast.Raise))
    return sorted(node.lineno for node in raised if node.exc and ast.unparse(node.exc).startswith("UserError("))


def report(data_file: str) -> list[str]:
    """A line for each site that was not executed, and a last one with the share of those that were."""
    data = CoverageData(data_file)
    data.read()
    if not data.measured_files():
        raise SystemExit(f"{data_file}: holds no measurement: coverage run writes it when the tests have ended")
    missed, total = [], 0
    for path in sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")):
        executed = set(data.lines(str(path)) or [])
        sites = error_sites(path)
        total += len(sites)
        missed += [f"{path.relative_to(ROOT)}:{line}" for line in sites if line not in executed]
    share = f"{total - len(missed)} of {total} `raise UserError` executed ({100 * (1 - len(missed) / total):.1f} %)"
    return [*missed, share]


if __name__ == "__main__":
    print("\n".join(report(sys.argv[1])))

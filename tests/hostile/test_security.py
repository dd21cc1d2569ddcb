"""SECURITY.md promises what a test holds."""

import ast
import re


def promises(root):
    text = (root / "SECURITY.md").read_text()
    return re.findall(r"^- (.+?)$", text.partition("## Promises\n")[2].partition("\n## ")[0], re.MULTILINE)


def test_every_promise_of_security_md_names_a_test_that_there_is(root):
    found = promises(root)
    assert len(found) > 15
    for promise in found:
        named = re.search(r"`(tests/[\w/]+\.py)::(test_\w+)`$", promise)
        assert named, promise
        tree = ast.parse((root / named[1]).read_text())
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert named[2] in tests, promise


def test_the_readme_leads_to_security_md(root):
    assert "](SECURITY.md)" in (root / "README.md").read_text()

"""The reference names every public name, and the docstrings there are whole."""

import ast
import inspect
import pathlib
import re
import textwrap

import pytest

import jaxprune as jp

ROOT = pathlib.Path(__file__).parent.parent
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.rst"))
MODULES = {
    "jaxprune": jp,
    "jaxprune.measures": jp.measures,
    "jaxprune.structured": jp.structured,
}


def is_public(module, name, value):
    """A function or class of ours that the module hands on, or defines for users."""
    if name.startswith("_") or not (
        inspect.isfunction(value) or inspect.isclass(value)
    ):
        return False
    if module is jp.measures:  # The others hand on names of private modules alone.
        return value.__module__ == module.__name__
    return value.__module__.startswith("jaxprune")


PUBLIC = {
    f"{prefix}.{name}": value
    for prefix, module in MODULES.items()
    for name, value in vars(module).items()
    if is_public(module, name, value)
}
FUNCTIONS = {n: f for n, f in PUBLIC.items() if inspect.isfunction(f)}
CLASSES = {n: c for n, c in PUBLIC.items() if inspect.isclass(c)}


def listed(text):
    """The full names under the autosummary directives of a page."""
    module = re.search(r"currentmodule:: (\S+)", text)
    blocks = re.findall(r"autosummary::\n(?:   :.*\n)+\n((?:   \S+\n?)+)", text)
    return [f"{module[1]}.{name}" for block in blocks for name in block.split()]


def papers():
    """The functions that the table of methods credits to a paper, by full name."""
    text = (ROOT / "docs" / "methods.md").read_text()
    rows = re.findall(r"^\| \[`(\w+)`\].*?<br>\*(.*?)\*", text, re.M)
    found = [name for name, source in rows if re.search(r"(19|20)\d\d", source)]
    assert len(found) > 20
    return [f"jaxprune.{name}" for name in found if f"jaxprune.{name}" in FUNCTIONS]


def raises(function):
    """Whether the function raises by itself, or calls one of our checks."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if re.match("_?(check|require)_", called):
                return True
    return False


def test_the_reference_names_every_public_name_once_and_no_other():
    names = [name for page in REFERENCE for name in listed(page.read_text())]
    missing, unknown = set(PUBLIC) - set(names), set(names) - set(PUBLIC)
    assert not missing, f"add to a page of docs/reference: {sorted(missing)}"
    assert not unknown, f"no such public names: {sorted(unknown)}"
    assert len(names) == len(set(names))


def test_each_page_of_the_reference_is_in_its_contents():
    contents = (ROOT / "docs" / "reference" / "index.rst").read_text().split()
    assert {page.stem for page in REFERENCE} - {"index"} <= set(contents)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_take_and_give(name):
    doc = inspect.getdoc(FUNCTIONS[name])
    summary = doc.split("\n\n")[0]
    assert summary.endswith(".") and summary.count("\n") <= 1, summary
    sections = ["Args:", "Returns:", "Example:"]
    sections += ["Raises:"] if raises(FUNCTIONS[name]) else []
    sections += ["References:"] if name in papers() or ".measures." in name else []
    for section in sections:
        assert len(re.findall(rf"^{section}$", doc, re.M)) == 1, f"lacks {section}"
    for argument in inspect.signature(FUNCTIONS[name]).parameters:
        assert re.search(rf"^  \*?{argument}: ", doc, re.M), f"{argument} unexplained"


@pytest.mark.parametrize("name", CLASSES)
def test_classes_name_their_fields(name):
    doc = inspect.getdoc(CLASSES[name])
    assert doc.split("\n\n")[0].endswith(".")
    for field in getattr(CLASSES[name], "_fields", ()):
        assert re.search(rf"\b{field}: ", doc), f"{name} does not explain {field}"

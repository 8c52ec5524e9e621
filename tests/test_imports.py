"""The library imports one way: no cycle, and no framework that it works with."""

import ast
import graphlib
import pathlib

PACKAGE = pathlib.Path(__file__).parent.parent / "jaxprune"


def _name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _is_for_types(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _statements(tree):
    """Every node, also inside functions, but not what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if not _is_for_types(node):
            yield node
            yield from _statements(node)


def _imported(path):
    """The modules that a file imports, by their full names."""
    for node in _statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


IMPORTS = {name: set(_imported(path)) for name, path in MODULES.items()}


def test_the_graph_is_read():
    assert len(MODULES) > 30
    assert "jaxprune.core._checks" in IMPORTS["jaxprune.masks._threshold"]


def test_no_module_imports_itself_through_others():
    graph = {name: names & set(MODULES) for name, names in IMPORTS.items()}
    graphlib.TopologicalSorter(graph).prepare()  # Raises a CycleError that shows it.


# Imported by narrow_module, when a user's module asks for it.
ON_REQUEST = {
    ("jaxprune.structured._equinox_layers", "equinox"),
    ("jaxprune.structured._nnx_layers", "flax"),
}


def test_no_module_imports_a_framework_or_the_experiments():
    foreign = {"benchmarks", "experiments", "flax", "matplotlib", "orbax", "tests"}
    foreign |= {"equinox", "haiku", "tensorflow", "tensorflow_datasets", "torch"}
    found = {
        (name, imported.split(".")[0])
        for name, names in IMPORTS.items()
        for imported in names
    }
    assert {pair for pair in found if pair[1] in foreign} == ON_REQUEST

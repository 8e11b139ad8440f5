"""A name is used for one thing: no two files and no two classes of the package share one."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import cloister

SOURCE = Path(cloister.__file__).parent
EVERYWHERE = {"__init__", "__main__"}


def classes(tree):
    return [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    ]


def shared(names):
    """What several files call the same; `names` has pairs of a name and its file."""
    places = defaultdict(list)
    for name, place in names:
        places[name].append(place)
    return {name: sorted(found) for name, found in places.items() if len(found) > 1}


def files(source):
    return [(path, path.relative_to(source).as_posix()) for path in source.rglob("*.py")]


def same_files(source):
    return shared(
        (path.stem, place) for path, place in files(source) if path.stem not in EVERYWHERE
    )


def same_classes(source):
    return shared(
        (name, place)
        for path, place in files(source)
        for name in classes(ast.parse(path.read_text()))
    )


@pytest.mark.parametrize("same", [same_files, same_classes])
def test_a_name_is_used_once(same):
    assert len(files(SOURCE)) > 100
    assert same(SOURCE) == {}


def test_a_name_used_twice_is_found(tmp_path):
    for place in ("a/one.py", "b/one.py", "b/two.py", "b/__init__.py", "a/__init__.py"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_text("class _Own:\n    class Kind: ...\n")
    assert same_files(tmp_path) == {"one": ["a/one.py", "b/one.py"]}
    assert list(same_classes(tmp_path)) == ["Kind"]

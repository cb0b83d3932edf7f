"""Which files of a repository are chosen, in what order, and which are never read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from localcoder.assist.imports import ImportGraph
from localcoder.assist.repository import find_related
from localcoder.errors import FileError

FILES = {
    "app/__init__.py": "",
    "app/main.py": "from app.shapes import Circle\nfrom . import config\n\nprint(Circle(1).area(config.SCALE))\n",
    "app/shapes.py": "from app.base import Shape\n\n\nclass Circle(Shape):\n    pass\n",
    "app/base.py": "class Shape:\n    pass\n",
    "app/config.py": "SCALE = 2\n",
    "other/user.py": "import app.main\n",
    "other/similar.py": "def draw_circle_area(): return Circle\n",
    "other/alien.py": "zebra = 1\n",
    "native/code.c": "int main(void) { return 0; }\n",
    "ignored/big.py": "from app.main import Circle\n",
    "ignored/kept.py": "from app import main\n",
    "secrets.py": "from app import main\n",
    "app/keys.py": "from app import main\nKEY = '-----BEGIN RSA PRIVATE KEY-----'\n",
    "node_modules/x.py": "from app import main\n",
    ".hidden/x.py": "from app import main\n",
    ".gitignore": "ignored/*\n!ignored/kept.py\n",
}


@pytest.fixture
def root(tmp_path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "app/binary.py").write_bytes(b"from app import main\0")
    (tmp_path / "app/latin.py").write_bytes(b"from app import main\xff")
    (tmp_path / "app/huge.py").write_text("from app import main\n" + "x = 1\n" * 100_000)
    return tmp_path


def related(root: Path, path: str = "app/main.py", most_chars: int = 10_000):
    return find_related(root, root / path, FILES[path], most_chars=most_chars)


def test_what_is_chosen_and_why(root):
    found = {file.path: file.reasons for file in related(root)}
    assert found["app/shapes.py"][0] == "imported"
    assert "imported" in found["app/config.py"]
    assert "imported by what is imported" in found["app/base.py"]
    assert "imports it" in found["other/user.py"]
    assert any(reason.startswith("shares Circle") for reason in found["other/similar.py"])
    assert set(found) == {
        "app/shapes.py",
        "app/config.py",
        "app/base.py",
        "other/user.py",
        "other/similar.py",
        "ignored/kept.py",
    }


def test_each_file_comes_after_those_that_it_imports_and_the_ones_that_matter_last(root):
    order = [file.path for file in related(root)]
    assert order.index("app/base.py") < order.index("app/shapes.py")
    assert order[-1] == "app/shapes.py"


def test_the_room_goes_to_what_matters_most(root):
    n = len(FILES["app/shapes.py"]) + len(FILES["app/config.py"])
    assert {file.path for file in related(root, most_chars=n)} == {"app/shapes.py", "app/config.py"}
    assert related(root, most_chars=0) == []


def test_files_that_import_each_other(root):
    (root / "app/base.py").write_text("from app.shapes import Circle\n")
    assert {"app/base.py", "app/shapes.py"} < {file.path for file in related(root)}


@pytest.mark.skipif(not hasattr(Path, "symlink_to"), reason="no links here")
def test_links_are_not_followed(root, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "target.py"
    outside.write_text("from app import main\n")
    try:
        (root / "app/link.py").symlink_to(outside)
        (root / "linked").symlink_to(outside.parent)
    except OSError:
        pytest.skip("links are not allowed here")
    assert not any("link" in file.path for file in related(root))


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_recent_changes_in_git(root):
    (root / "other/lately.py").write_text("nothing = 0\n")
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "other/lately.py"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    assert ("other/lately.py", ("changed lately",)) in [(file.path, file.reasons) for file in related(root)]


def test_a_file_outside_and_a_root_that_is_none(root):
    with pytest.raises(FileError, match="is no folder"):
        find_related(root / "app/main.py", root, "", most_chars=1)
    with pytest.raises(FileError, match="is not in"):
        find_related(root / "app", root / "other/user.py", "", most_chars=1)


@pytest.mark.parametrize(
    ("path", "line", "expected"),
    [
        ("a/x.py", "from ..b import c", "b/c.py"),
        ("a/x.py", "from . import y, z", "a/y.py"),
        ("a/x.py", "import b.c as d", "b/c.py"),
        ("a/x.py", "from b import *", "b/__init__.py"),
        ("a/x.js", "import { f } from './y.js'", "a/y.js"),
        ("a/x.ts", 'const y = require("../lib/util")', "lib/util.ts"),
        ("a/x.ts", "export * from '../lib'", "lib/index.ts"),
        ("a/x.c", '  #include "inc/y.h"', "inc/y.h"),
        ("a/x.rs", "use crate::net::tcp;", "net/tcp.rs"),
        ("a/x.rs", "mod y;", "a/y.rs"),
        ("a/X.java", "import org.shop.Cart;", "src/org/shop/Cart.java"),
        ("a/x.py", "import os", None),
    ],
)
def test_import_lines_of_several_languages(path, line, expected):
    paths = ["b/c.py", "b/__init__.py", "a/y.py", "a/z.py", "a/y.js", "lib/util.ts", "lib/index.ts", "inc/y.h"]
    paths += ["net/tcp.rs", "a/y.rs", "src/org/shop/Cart.java", path]
    same = [p for p in paths if Path(p).suffix == Path(path).suffix or (path.endswith("c") and p.endswith("h"))]
    found = ImportGraph(same).imports_of(path, line + "\n")
    assert found[:1] == ([expected] if expected else [])

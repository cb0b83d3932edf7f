"""The data to train on: licences, what is left out, and that nothing held out gets in."""

from __future__ import annotations

import dataclasses
import zipfile
from collections import Counter
from email.message import Message

import pytest
from train.cleaning import clean, is_left_out, windows
from train.data import make_data, make_heldout, read_corpus
from train.licences import permitted_licence
from train.sources import Package, fetched_projects, installed_projects, read_list
from train.work import Work, read_json
from train_fixtures import HELDOUT, STDLIB, project

from localcoder.errors import FileError, OptionError

MODULE = '"""A module."""\n\n' + "".join(f"def f{i}(x):\n    return x + {i}\n\n\n" for i in range(20))


def metadata(**fields: str | list[str]) -> Message:
    message = Message()
    message["Name"] = "thing"
    for name, value in fields.items():
        for each in [value] if isinstance(value, str) else value:
            message[name.replace("_", "-")] = each
    return message


PERMITTED = [
    ({"License_Expression": "MIT"}, "MIT"),
    ({"License_Expression": "BSD-3-Clause AND MIT"}, "BSD and MIT"),
    ({"License_Expression": "Apache-2.0 OR BSD-2-Clause"}, "Apache-2.0 or BSD"),
    ({"License_Expression": "GPL-3.0-only OR MIT"}, "MIT"),
    ({"Classifier": ["License :: OSI Approved :: MIT License", "Topic :: Text"]}, "MIT"),
    ({"Classifier": "License :: OSI Approved :: Python Software Foundation License", "License": "see file"}, "PSF"),
    ({"License": "BSD-3-Clause"}, "BSD"),
    ({"License": "Apache License, Version 2.0"}, "Apache-2.0"),
]
REFUSED = [
    {},
    {"License": "proprietary"},
    {"License": "MIT-like, but not for commercial use"},
    {"License_Expression": "MPL-2.0 AND MIT"},
    {"License_Expression": "Apache-2.0 WITH Commons-Clause"},
    {"License_Expression": "(GPL-2.0-only OR MIT) AND CC-BY-NC-4.0"},
    {"License_Expression": "LGPL-3.0-only", "Classifier": "License :: OSI Approved :: MIT License"},
    {
        "Classifier": [
            "License :: OSI Approved :: BSD License",
            "License :: OSI Approved :: GNU General Public License (GPL)",
        ]
    },
]


@pytest.mark.parametrize(("fields", "expected"), PERMITTED)
def test_permissive_licences(fields, expected):
    assert permitted_licence(metadata(**fields)) == expected


@pytest.mark.parametrize("fields", REFUSED)
def test_other_licences_are_refused(fields):
    with pytest.raises(OptionError, match="thing: its licence is"):
        permitted_licence(metadata(**fields))


def write_wheel(folder, *, name="thing", licence="MIT", files):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.5-py3-none-any.whl", "w") as archive:
        info = f"{name}-1.5.dist-info"
        text = f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.5\nLicense-Expression: {licence}\n"
        archive.writestr(f"{info}/METADATA", text)
        for path, data in files.items():
            archive.writestr(path, data)


def test_a_wheel_is_read_without_running_or_leaving_it(tmp_path):
    names = ["thing/a.py", "../out.py", "/root.py", "thing/data.json", "C:\\x.py"]
    write_wheel(tmp_path, files=dict.fromkeys(names, b"raise SystemExit"))
    (found,) = fetched_projects([Package("thing", "MIT", False)], tmp_path)
    assert (found.name, found.version, found.licence) == ("thing", "1.5", "MIT")
    assert found.files == {"thing/a.py": b"raise SystemExit"}


@pytest.mark.parametrize(("licence", "complaint"), [("BSD-3-Clause", "the list says MIT"), ("GPL-3.0-only", "thing: ")])
def test_a_wheel_under_another_licence_than_listed_is_refused(tmp_path, licence, complaint):
    write_wheel(tmp_path, licence=licence, files={"thing/a.py": b""})
    with pytest.raises(OptionError, match=complaint):
        list(fetched_projects([Package("thing", "MIT", False)], tmp_path))


def test_a_missing_wheel_is_named(tmp_path):
    with pytest.raises(FileError, match="no wheel of thing"):
        list(fetched_projects([Package("thing", "MIT", False)], tmp_path))


def test_installed_packages_state_the_licences_of_the_list():
    found = list(installed_projects(read_list()))
    assert {"click", "jinja2"} <= {project.name for project in found}
    assert all(project.files for project in found if project.name in ("click", "jinja2"))


def test_the_list():
    listed = read_list()
    heldout = [package.name for package in listed if package.is_heldout]
    trained = [package.name for package in listed if not package.is_heldout]
    assert len(heldout) >= 5
    assert (trained, heldout) == (sorted(trained), sorted(heldout))


@pytest.mark.parametrize(
    "line", ["click\tBSD", "click\tBSD\tmaybe", "Click_X\tBSD\ttrain", "click\tBSD\ttrain x0", "click\tBSD\ttrain\tx"]
)
def test_a_malformed_list(tmp_path, line):
    path = tmp_path / "list.tsv"
    path.write_text(f"# names\n{line}\n", encoding="utf-8")
    with pytest.raises(FileError, match="line 2 is"):
        read_list(path)


@pytest.mark.parametrize(
    ("path", "is_out"),
    [
        ("pkg/tests/a.py", True),
        ("pkg/test_a.py", True),
        ("pkg/a_test.py", True),
        ("pkg/conftest.py", True),
        ("pip/_vendor/rich/a.py", True),
        ("pkg/latest.py", False),
        ("pkg/attestation.py", False),
        ("unittest/mock.py", False),
    ],
)
def test_tests_and_vendored_code_are_left_out(path, is_out):
    assert is_left_out(path) == is_out


def test_cleaning():
    assert clean(MODULE.replace("\n", "  \r\n").encode()) == MODULE.rstrip("\n") + "\n"
    tables = "table = [\n" + "    0x1234, 5678, 9012, 3456,\n" * 40 + "]\n"
    for bad in (b"x = 1\n", b"\xff" + MODULE.encode(), b"# Generated by a tool\n" + MODULE.encode(), tables.encode()):
        assert clean(bad) is None
    assert clean((MODULE + "print 'old'\n").encode()) is None
    assert clean((MODULE + f"x = '{'y' * 500}'\n").encode()) is None


def test_held_out_projects_never_get_into_the_training_data(tmp_path, projects):
    """Neither under their own name nor as copies, indented or cut, that other projects carry."""
    (heldout,) = [p for p in projects if p.name == HELDOUT]
    shlex = (STDLIB / "shlex.py").read_bytes()
    copies = {
        "copies/same.py": shlex,
        "copies/indented.py": b"if True:\n" + b"".join(b"    " + line for line in shlex.splitlines(keepends=True)),
        "copies/part.py": b"\n".join(shlex.split(b"\n")[20:200]).replace(b"class shlex:", b"class shlex:"),
        "copies/other.py": (STDLIB / "cmd.py").read_bytes(),
    }
    work = Work(tmp_path / "work")
    made = make_data([*projects, project("copies", copies)], work, project_mb=1)
    sources = list(read_corpus(work))
    assert {source.project for source in sources} == {"alpha", "beta", "copies"}
    assert [source.path for source in sources if source.project == "copies"] == ["copies/other.py"]
    known = set().union(*(windows(data.decode()) for data in heldout.files.values()))
    assert not known & set().union(*(windows(source.text) for source in sources))
    text = work.heldout_text.read_text(encoding="utf-8")
    assert "class shlex" in text
    assert {p["name"]: p["heldout"] for p in made["projects"]} == {
        "alpha": False,
        "beta": False,
        "copies": False,
        HELDOUT: True,
    }
    assert read_json(work.data, "data") == made["projects"]
    assert f"{HELDOUT}==1.0" in work.versions.read_text(encoding="utf-8")


def test_a_text_to_leave_out_and_the_most_of_a_project(tmp_path, projects):
    work = Work(tmp_path / "work")
    left_out = (STDLIB / "heapq.py").read_text(encoding="utf-8")
    make_data(projects, work, project_mb=0.07, leave_out=left_out)
    sources = list(read_corpus(work))
    assert "alpha/heapq.py" not in {source.path for source in sources}
    for name in ("alpha", "beta"):
        texts = [source.text for source in sources if source.project == name]
        assert 0 < sum(len(text.encode()) for text in texts) <= 70_000


def test_what_the_list_has_several_times(tmp_path, projects):
    path = tmp_path / "list.tsv"
    path.write_text("alpha\tMIT\ttrain x3\nbeta\tMIT\ttrain\n", encoding="utf-8")
    times = {package.name: package.times for package in read_list(path)}
    work = Work(tmp_path / "work")
    made = make_data([dataclasses.replace(p, times=times.get(p.name, 1)) for p in projects], work, project_mb=1)
    counts = Counter(source.path for source in read_corpus(work))
    assert counts["alpha/heapq.py"] == 3
    assert counts["beta/bisect.py"] == 1
    alpha = {p["name"]: p for p in made["projects"]}["alpha"]
    assert (alpha["files"], alpha["times"]) == (3, 3)  # a file counts once


def test_nothing_held_out_is_an_error(tmp_path):
    with pytest.raises(OptionError, match="1 files to train on and 0 held out"):
        make_data([project("alpha", {"a.py": MODULE.encode()})], Work(tmp_path), project_mb=1)
    assert not list(tmp_path.glob("*.tmp"))


def test_what_is_held_out_can_be_made_alone(packed, projects, tmp_path):
    alone = Work(tmp_path)
    make_heldout([project for project in projects if project.is_heldout], alone, project_mb=1)
    assert alone.heldout_text.read_bytes() == packed.heldout_text.read_bytes()
    files = [{p.relative_to(w.heldout): p.read_bytes() for p in w.heldout.rglob("*.py")} for w in (alone, packed)]
    assert files[0] == files[1] != {}

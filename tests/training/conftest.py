"""A small work folder: standard-library files as projects, a vocabulary of their own, rows of tokens."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
from train.data import make_data, read_corpus
from train.packing import make_rows
from train.settings import Settings, read_settings
from train.sources import Project
from train.vocabulary import save_tokenizer, train_tokenizer
from train.work import Work
from train_fixtures import HELDOUT, PROJECTS, STDLIB, project


@pytest.fixture(scope="session")
def projects() -> list[Project]:
    return [
        project(name, {f"{name}/{file}": (STDLIB / file).read_bytes() for file in files}, is_heldout=name == HELDOUT)
        for name, files in PROJECTS.items()
    ]


@pytest.fixture(scope="session")
def settings() -> Settings:
    """Of a model of 0.1 million parameters."""
    trial = read_settings("trial")
    model = dataclasses.replace(
        trial.model, n_vocab=512, n_layer=2, n_embd=64, n_head=4, n_head_kv=2, n_ff=96, n_ctx_train=512
    )
    documents = dataclasses.replace(trial.documents, row_tokens=128, fim_characters=200, passes=2)
    training = dataclasses.replace(trial.training, batch_rows=8, warmup_tokens=8192)
    return Settings("f32", model, documents, training)


@pytest.fixture(scope="session")
def packed(tmp_path_factory, projects, settings) -> Work:
    """A work folder after the stages data, tokenizer and pack; not to be written to."""
    work = Work(tmp_path_factory.mktemp("train"))
    make_data(projects, work, project_mb=1)
    texts = [source.text for source in read_corpus(work)]
    save_tokenizer(train_tokenizer(texts, settings.model.n_vocab), work.tokenizer)
    make_rows(work, settings, workers=1)
    return work


@pytest.fixture
def work(packed, tmp_path) -> Work:
    """A copy of `packed`."""
    shutil.copytree(packed.folder, tmp_path / "work")
    return Work(tmp_path / "work")

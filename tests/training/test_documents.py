"""What is trained on is what localcoder asks its models, to the token."""

from __future__ import annotations

import ast
import dataclasses
import json
import random

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_or_skip import torch
from train.data import Source, read_corpus
from train.documents import (
    Document,
    chat_document,
    cut,
    infill_document,
    infill_documents,
    make_documents,
    make_hole,
    plain_document,
)
from train.export import write_checkpoint
from train.instructions import Pair, make_pairs
from train.model import Llama
from train.packing import map_rows, mixed, pack, read_about, rows_file
from train.vocabulary import EOS, EOT, SPECIAL_TOKENS, open_tokenizer, sample_of, train_tokenizer
from train.work import Work
from train_fixtures import STDLIB

from localcoder.convert.choice import Choice
from localcoder.convert.converter import convert
from localcoder.convert.recipes import recipe_by_name
from localcoder.errors import OptionError
from localcoder.files.gguf_reader import GGUFFile
from localcoder.quants.search import requantize
from localcoder.tokenizer import Tokenizer
from localcoder.tokenizer.chat import chat_prompt
from localcoder.tokenizer.infill import infill_prompt

PREFIX, MIDDLE, SUFFIX = "def area(r):\n    pi = 3.14\n    return ", "pi * r * r", "\n\n\nprint(area(2))\n"
BOS, BEGIN, HOLE, END = SPECIAL_TOKENS[0], SPECIAL_TOKENS[3], SPECIAL_TOKENS[2], SPECIAL_TOKENS[4]


@pytest.fixture(scope="module")
def tokenizer(packed) -> Tokenizer:
    return open_tokenizer(packed.tokenizer)


@pytest.fixture(scope="module")
def oracle(packed):
    return tokenizers.Tokenizer.from_file(str(packed.tokenizer / "tokenizer.json"))


@pytest.fixture(scope="module")
def exported(packed, settings, tmp_path_factory):
    """The folder of a checkpoint of random weights, and the GGUF file that it converts to."""
    folder = tmp_path_factory.mktemp("exported")
    model = Llama(settings.model)
    model.initialize(0)
    write_checkpoint(model.state_dict(), settings.model, packed.tokenizer, folder / "checkpoint", torch.float32)
    choice = Choice(recipe_by_name("f32"))
    convert(folder / "checkpoint", folder / "model.gguf", choice, requantize=requantize)
    return folder


def ids_of(oracle, *parts: str) -> list[int]:
    """Special tokens by name, texts as the `tokenizers` library cuts them."""
    ids = []
    for part in parts:
        ids += (
            [oracle.token_to_id(part)] if part in SPECIAL_TOKENS else oracle.encode(part, add_special_tokens=False).ids
        )
    return ids


def test_special_tokens_are_the_familys(shared, oracle, settings):
    family = json.loads((shared / "deepseek-coder" / "tokenizer.json").read_text(encoding="utf-8"))
    spelled = tuple(token["content"] for token in family["added_tokens"] if token["special"])
    assert spelled == SPECIAL_TOKENS
    n = len(SPECIAL_TOKENS)
    assert [oracle.id_to_token(settings.model.n_vocab - n + i) for i in range(n)] == list(SPECIAL_TOKENS)
    ours = json.loads(oracle.to_str())
    assert ours["pre_tokenizer"]["pretokenizers"][:-1] == family["pre_tokenizer"]["pretokenizers"][:-1]


def test_the_same_texts_give_the_same_vocabulary(packed, oracle):
    texts = [source.text for source in read_corpus(packed)]
    assert sample_of(texts) == sample_of(texts)
    again = train_tokenizer(texts, 512)
    assert json.loads(again.to_str())["model"] == json.loads(oracle.to_str())["model"]
    with pytest.raises(OptionError, match="take more text or a lower n_vocab"):
        train_tokenizer(["def f(x): return x\n"], 4096)
    with pytest.raises(OptionError, match="expected at least"):
        train_tokenizer(texts, 200)


def test_an_infill_document_is_the_prompt_then_the_middle(tokenizer, oracle, exported):
    """Against the published form, and against the prompt that the converted model is asked with."""
    document = infill_document(PREFIX, MIDDLE, SUFFIX, tokenizer)
    assert document == Document(ids_of(oracle, BOS, BEGIN, PREFIX, HOLE, SUFFIX, END, MIDDLE, EOS), True)
    with GGUFFile.open(exported / "model.gguf") as file:
        asked = infill_prompt(Tokenizer.from_gguf(file), PREFIX, SUFFIX, heal_prefix=False, heal_suffix=False)
    assert tuple(document.ids[: len(asked.ids)]) == asked.ids


def test_a_chat_document_is_the_prompt_then_the_answer(tokenizer, oracle, exported):
    """Against transformers' rendering of the template, and the prompt that the converted model is asked with."""
    transformers = pytest.importorskip("transformers")
    pair = Pair("Write a function that adds.", "```python\ndef add(a, b):\n    return a + b\n```")
    document = chat_document(pair, tokenizer)
    question = {"role": "user", "content": pair.instruction}
    with GGUFFile.open(exported / "model.gguf") as file:
        converted = Tokenizer.from_gguf(file)
        asked = chat_prompt(converted, [question])
        assert not converted.is_instruct  # infill and completion come first
    assert document.ids[: len(asked)] == asked
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(exported / "checkpoint")
    answer = {"role": "assistant", "content": pair.answer}
    text = theirs.apply_chat_template([question, answer], tokenize=False)
    assert text.endswith("```\n<|EOT|>\n")
    assert document.ids == ids_of(oracle, BOS, text.removeprefix(BOS).removesuffix("<|EOT|>\n"), EOT)
    assert document.is_whole


def test_text_that_spells_special_tokens_stays_text(tokenizer):
    special = {tokenizer.id_of(token) for token in SPECIAL_TOKENS}
    text = "".join(f"x = '{token}'\n" for token in SPECIAL_TOKENS)
    pair = Pair(f"Say {text}", f"```python\n{text}```")
    documents = {
        2: [plain_document(text, tokenizer)],
        5: [infill_document(text, text, text, tokenizer)],
        # BOS and EOT, and no other from the text
        -2: [chat_document(pair, tokenizer)],
    }
    for n_special, made in documents.items():
        for document in made:
            assert sum(i in special for i in document.ids) == abs(n_special)
            assert tokenizer.detokenize(document.ids).count(text) == (3 if n_special == 5 else 1) or n_special == -2


@given(seed=st.integers(0, 10**6), text=st.text(st.sampled_from("ab(\n é"), min_size=1, max_size=60))
def test_holes_and_cuts_lose_nothing(seed, text):
    begin, end = make_hole(text, random.Random(seed))
    assert 0 <= begin <= end <= len(text)
    pieces = cut(text, 8)
    assert "".join(pieces) == text
    assert all(len(piece) <= 8 or piece.count("\n") <= 1 for piece in pieces)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6))
def test_infill_documents_put_together_are_the_text(tokenizer, seed):
    text = (STDLIB / "bisect.py").read_text(encoding="utf-8")
    found = ""
    for document in infill_documents(text, tokenizer, 96, random.Random(seed)):
        if not document.is_whole:  # a line too long for a prompt
            found += tokenizer.detokenize(document.ids)
            continue
        assert len(document.ids) <= 96
        assert document.ids[-1] == tokenizer.eos_id
        hole, end = document.ids.index(tokenizer.fim_suffix_id), document.ids.index(tokenizer.fim_middle_id)
        prefix, suffix, middle = document.ids[:hole], document.ids[hole:end], document.ids[end:]
        found += "".join(map(tokenizer.detokenize, (prefix, middle, suffix)))
    assert found == text


def test_the_mixture(tokenizer, settings_of_many_files):
    """Half of the files become infill, and neighbours become repositories, each led by its path."""
    chosen, sources = settings_of_many_files
    documents = list(make_documents(sources, tokenizer, chosen, 128, "0"))
    again = list(make_documents(sources, tokenizer, chosen, 128, "0"))
    assert documents == again != list(make_documents(sources, tokenizer, chosen, 128, "1"))
    plain = [tokenizer.detokenize(document.ids) for document in documents if not document.is_whole]
    n_repositories = sum(text.startswith("#pkg/") for text in plain)
    assert n_repositories > 0
    for text in plain:
        if text.startswith("#pkg/"):
            n_files = text.count("#pkg/")
            assert 2 <= n_files <= 5
            numbers = [int(line[5:-3]) for line in text.split("\n") if line.startswith("#pkg/")]
            assert numbers == list(range(numbers[0], numbers[0] + n_files))
    n_alone = len(plain) - n_repositories
    n_infill = sum(document.is_whole and tokenizer.fim_suffix_id in document.ids for document in documents)
    assert 0.4 <= n_infill / (n_infill + n_alone) <= 0.6


def test_infill_documents_are_short_and_long(tokenizer, settings):
    """As short and as long as what editors send: up to the setting, with a sixteenth of it at the least."""
    chosen = dataclasses.replace(settings.documents, fim_share=1.0, fim_characters=1600, repository_share=0.0)
    text = "".join(f"value_{i} = {i}\n" for i in range(1000))
    documents = make_documents([Source("pkg", f"pkg/{i}.py", text) for i in range(60)], tokenizer, chosen, 4096, "0")
    lengths = sorted(len(tokenizer.detokenize(d.ids)) for d in documents if d.is_whole)
    whole = [n for n in lengths if n > 80]  # the last piece of a file is shorter
    assert 80 < whole[0] < 160
    assert 1400 < whole[-1] <= 1600


@pytest.fixture
def settings_of_many_files(settings):
    sources = [Source("pkg", f"pkg/{i}.py", f"value_{i} = {i}\n") for i in range(1000)]
    return settings.documents, sources


def test_pairs_come_from_functions_that_say_what_they_do():
    text = '''
def area(r, *, unit="m"):
    """Return the area of a circle of radius r.  It is exact.

    More.
    """
    square = r * r
    return 3.14159 * square, unit

def bare(r):
    return r * r + r * r * r * r

def empty(r):
    """Do nothing at all with the radius."""
    raise NotImplementedError("a subclass has to do it")

class Circle:
    def area(self):
        """Return the area of this very circle."""
        return self.r * self.r * 3.14159 + 0
'''
    (pair,) = make_pairs(text, random.Random(0))
    assert "Return the area of a circle of radius r." in pair.instruction
    code = pair.answer.removeprefix("```python\n").removesuffix("\n```")
    expected = 'def area(r, *, unit="m"):\n    square = r * r\n    return 3.14159 * square, unit'
    assert code == expected


def test_every_answer_is_a_code_block_that_parses():
    pairs = [
        pair
        for name in ("textwrap", "heapq", "statistics", "shutil", "random", "tokenize", "inspect")
        for pair in make_pairs((STDLIB / f"{name}.py").read_text(encoding="utf-8"), random.Random(0))
    ]
    assert len(pairs) >= 30
    for pair in pairs:
        code = pair.answer.removeprefix("```python\n").removesuffix("\n```")
        (function,) = ast.parse(code).body
        assert isinstance(function, ast.FunctionDef)
        assert ast.get_docstring(function) is None
        assert "\n" not in pair.instruction


BOS_ID, EOS_ID, PAD_ID = 1, 2, 0
IDS = st.lists(st.integers(3, 9), max_size=14)


@given(documents=st.lists(st.tuples(IDS, st.booleans()), max_size=30))
def test_packing_loses_and_repeats_nothing(documents):
    made = [Document([BOS_ID, *ids, EOS_ID], is_whole) for ids, is_whole in documents]
    rows, fills = pack(made, 16, PAD_ID)
    assert rows.dtype == np.uint16
    whole = [i for row, fill in zip(rows, fills) for i in row[:fill]]
    assert whole == [i for document in made if document.is_whole for i in document.ids]
    plain = [int(i) for row, fill in zip(rows, fills) for i in row[fill:] if i != PAD_ID]
    assert plain == [i for document in made if not document.is_whole for i in document.ids]
    for row, fill in zip(rows, fills):
        assert fill == 0 or (row[0] == BOS_ID and row[fill - 1] == EOS_ID)  # no whole document is cut


def test_textbooks_get_their_share(tmp_path):
    work = Work(tmp_path)
    work.data.write_text(json.dumps([{"name": "book", "times": 3}, {"name": "library", "times": 1}]), encoding="utf-8")
    books = [Source("book", f"book/{i % 10}.py", "x" * 100) for i in range(30)]
    library = [Source("library", f"library/{i}.py", "y" * 50) for i in range(200)]
    found = mixed(books + library, work, 0.6, random.Random(0))
    assert found[:30] == books
    assert len(found[30:]) == 3000 * 0.4 / 0.6 / 50
    assert found[30:] == sorted(found[30:], key=library.index) != library[:40]
    assert mixed(books + library, work, 0.2, random.Random(0)) == books + library  # there is no more


def test_rows_hold_the_corpus(packed, settings, tokenizer):
    """Every character of every file is in every pass, in holes that differ from pass to pass."""
    about = read_about(packed)
    passes = [map_rows(rows_file(packed, n), about["row_tokens"]) for n in range(len(about["passes"]))]
    assert len(passes) == 2
    assert passes[0].tobytes() != passes[1].tobytes()
    n_text = sum(len(source.text.encode()) for source in read_corpus(packed))
    for rows, told in zip(passes, about["passes"]):
        assert int((rows != about["pad_id"]).sum()) == told["tokens"]
        assert rows.max() < settings.model.n_vocab
        assert (rows == tokenizer.eos_id).sum() + (rows == tokenizer.eot_id).sum() == told["documents"]
        assert sum(len(tokenizer.token_bytes(int(i))) for i in rows.flatten()) >= n_text

from __future__ import annotations

import pytest

from limelight import PromptError
from limelight.prompts.prompt import parse


@pytest.fixture
def read(tokenizer):
    return lambda text, length=77: parse(text, tokenizer, length)


@pytest.mark.parametrize(
    ("text", "subject", "positions"),
    [
        ("a cat and a dog", "cat", (2,)),
        ("a cat and a dog", "DOG", (5,)),
        ("A Cat, and a DOG!", "dog", (6,)),
        ("a dog and a dog", "dog", (2,)),
        ("a dog and a dog", "dog#2", (5,)),
        ("a black cat and a cat", "black cat", (2, 3)),
        ("a black cat and a black dog", "black dog", (6, 7)),
        ("a cat and a dog", 5, (5,)),
        ("a cat and a dog", [2, 5], (2, 5)),
        ("a (cat) and a 'dog'", "cat", (3,)),
        ("a cat and a dog", [5, 2, 5], (2, 5)),
        ("a cat <|endoftext|> and a dog", "dog", (6,)),
    ],
)
def test_find(read, text, subject, positions):
    assert read(text).find(subject) == positions


def test_pieces_of_a_word_belong_together(read):
    prompt = read("a zebra and a cat")
    pieces = prompt.find("zebra")
    assert len(pieces) > 1
    assert pieces == tuple(range(2, 2 + len(pieces)))
    assert "".join(prompt.tokens[i] for i in pieces) == "zebra</w>"
    assert prompt.find("cat") == (prompt.end - 1,)


def test_hyphens_accents_and_odd_spaces(read):
    prompt = read("a  rose-colored\tcaf\u00e9")
    assert [word.text for word in prompt.words] == ["a", "rose-colored", "caf\u00e9"]
    assert prompt.find("rose-colored")[-1] + 1 == prompt.find("caf\u00e9")[0]
    decomposed = read("a cafe\u0301")
    assert decomposed.find("caf\u00e9") == decomposed.find("cafe\u0301") != ()


def test_length_and_end(read):
    prompt = read("a cat")
    assert len(prompt.ids) == 77
    assert prompt.end == 3
    assert read("").words == ()


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("dig", "'dig' is not in the prompt; its words are: a, cat, and, a, dog."),
        ("do", "'do' is not in the prompt"),
        ("cat#2", "'cat#2' asks for occurrence 2, but 'cat' is in the prompt once."),
        ("cat dog", "'cat dog' is not in the prompt"),
        ("!?", "'!?' is not a word"),
        ("", "'' is not a word"),
        (0, "Token index 0 is not in the prompt; its tokens are: 1 a</w>"),
        (6, "Token index 6"),
        (-1, "Token index -1"),
        ([], "An empty list"),
        (("cat", "dog"), "The subject ('cat', 'dog') is neither a word nor a token index"),
        (2.0, "The subject 2.0 is neither"),
        ("dog#\u00b2", "'dog#\u00b2' is not in the prompt"),
    ],
)
def test_errors_quote_the_user(read, subject, message):
    with pytest.raises(PromptError) as error:
        read("a cat and a dog").find(subject)
    assert message in str(error.value)


def test_words_beyond_the_length(read):
    prompt = read("a cat and a zebra and a dog", length=8)
    with pytest.raises(PromptError, match="'dog' lies beyond the 8 tokens"):
        prompt.find("dog")
    # Cut in the middle of its pieces: half a word is no subject.
    with pytest.raises(PromptError, match="'zebra' lies beyond"):
        prompt.find("zebra")
    assert prompt.find("cat") == (2,)

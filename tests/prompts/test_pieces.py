"""Tokens without offsets: the characters that they stand for are found by decoding."""

from __future__ import annotations

import pytest
from transformers import ByT5Tokenizer

from limelight.errors import PromptError
from limelight.prompts.pieces import encoded_spans
from limelight.prompts.prompt import Stream, parse_streams
from tests.transformers import gemma_tokenizer, t5_tokenizer


class Slow:
    """A fast tokenizer that does not give its offsets away."""

    is_fast = False

    def __init__(self, fast):
        self.fast = fast

    def __call__(self, text, **options):
        assert "return_offsets_mapping" not in options
        return self.fast(text, **options)

    def __getattr__(self, name):
        return getattr(self.fast, name)


@pytest.mark.parametrize(
    ("fast", "text"),
    [(t5_tokenizer, "a black cat and  a frogs dog"), (gemma_tokenizer, "a black cat, and a frogs-hello dog")],
)
def test_words_are_those_of_the_offsets(fast, text):
    for length in (40, 6):
        expected = parse_streams(text, [Stream(fast(), length, template="hello {} photo")])
        found = parse_streams(text, [Stream(Slow(fast()), length, template="hello {} photo")])
        assert [word.text for word in found.words] == [word.text for word in expected.words]
        assert [[found.places[i] for i in word.positions] for word in found.words] == [
            [expected.places[i] for i in word.positions] for word in expected.words
        ]


def test_bytes_of_a_character_all_stand_for_it():
    ids, spans = encoded_spans("a caf\u00e9 \u732b", ByT5Tokenizer())
    assert len(ids) == 1 + 1 + 5 + 1 + 3 + 1
    assert spans[2:7] == [(2, 3), (3, 4), (4, 5), (5, 6), (5, 6)]
    assert spans[8:11] == [(7, 8)] * 3
    assert spans[-1] == (8, 8)
    prompt = parse_streams("a caf\u00e9 \u732b", [Stream(ByT5Tokenizer(), 64)])
    assert [len(word.positions) for word in prompt.words] == [1, 5, 3]


def test_a_text_that_tokens_do_not_give_back_is_refused():
    class Lossy(Slow):
        def decode(self, ids, **options):
            return self.fast.decode(ids, **options).replace("c", "")

    with pytest.raises(PromptError, match="reads 'a cat' as 'aat'"):
        encoded_spans("a cat", Lossy(t5_tokenizer()))


def test_a_word_of_the_template_alone_is_refused_with_the_reason():
    prompt = parse_streams("a cat", [Stream(t5_tokenizer(), 40, template="Describe the photo: {}")])
    with pytest.raises(PromptError, match="'photo' is not in the prompt but in the text that this model writes around"):
        prompt.find("photo")
    with pytest.raises(PromptError, match="'dog' is not in the prompt; its words"):
        prompt.find("dog")

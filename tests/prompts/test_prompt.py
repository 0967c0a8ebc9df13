from __future__ import annotations

import unicodedata

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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "\u090f\u0915 \u0939\u093f\u0928\u094d\u0926\u0940 \u092c\u093f\u0932\u094d\u0932\u0940",
            3,
        ),  # Hindi: vowel signs, viramas
        ("\u0642\u0650\u0637\u0651\u0629 \u0648\u064e\u0643\u064e\u0644\u0652\u0628", 2),  # Arabic with vowels
        ('\u05db\u05bc\u05b6\u05dc\u05b6\u05d1 \u05e6\u05d4"\u05dc', 2),  # Hebrew with points, and an abbreviation
        ("\u0baa\u0bc2\u0ba9\u0bc8 \u0bae\u0bb0\u0bae\u0bcd", 2),  # Tamil
        ("\u0e41\u0e21\u0e27\u0e14\u0e33\u0e41\u0e25\u0e30\u0e2b\u0e21\u0e35", 1),  # Thai writes no spaces
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", 1),  # Persian: a joiner inside a word
        ("AT&T, R&B's and C++ or C#", 6),
        ("cat&dog", 2),
        ("1.5 liters, l\u00b7lustre", 3),
        ("ele\u00adphant ti\u200bger rose\u2011colored", 3),
        ("\u4e00\u53ea3\u732b", 3),  # Han, a digit, Han
        ("\U0001f431\U0001f436 \u2764\ufe0f \U0001f44d\U0001f3fd \U0001f1eb\U0001f1f7 \u00a9", 5),  # skin tone, flag
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", 1),  # a family
    ],
)
def test_words_of_any_script_are_whole(read, text, words):
    prompt = read(text)
    assert len(prompt.words) == words
    for word in prompt.words:
        following = text[word.span[1] : word.span[1] + 1]
        assert not unicodedata.category(following or "x").startswith("M"), "a mark is torn off"
        assert word.positions == prompt.find(word.text) != ()


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        ("a portrait of Mr O\u2019Neill", "O'Neill"),
        ("a portrait of Mr O'Neill", "o\u2019neill"),
        ("an ele\u00adphant", "elephant"),
        ("an ele\u200bphant", "elephant"),
        ("a dress, rose\u2011colored", "rose-colored"),
        ("a \u2764", "\u2764\ufe0f"),
        ("a \u05e6\u05d4\u05f4\u05dc", '\u05e6\u05d4"\u05dc'),
    ],
)
def test_other_spellings_of_a_word(read, text, subject):
    prompt = read(text)
    assert prompt.find(subject) == prompt.words[-1].positions != ()


def test_no_spaces_are_needed_in_chinese_and_japanese(read):
    text = "\u4e00\u53ea\u9ed1\u732b\u548c\u4e00\u53ea\u72d7\u3001\u718a\u732b"  # one black cat and one dog, panda
    prompt = read(text)

    def of(start, stop):
        return tuple(i for i in range(1, prompt.end) if prompt.spans[i][0] < stop and prompt.spans[i][1] > start)

    assert len(prompt.words) == 2
    assert prompt.find("\u732b") == of(3, 4) != ()
    assert prompt.find("\u9ed1\u732b") == of(2, 4)
    assert prompt.find("\u732b#2") == of(10, 11)
    assert prompt.find("\u718a\u732b") == prompt.words[1].positions
    with pytest.raises(PromptError, match="'\u732b' is in the prompt 2 times"):
        prompt.find("\u732b#3")
    with pytest.raises(PromptError, match="'\u9e1f' is not in the prompt"):
        prompt.find("\u9e1f")
    # A whole word comes before the same letters inside another.
    apart = read("\u718a\u732b \u732b")
    assert apart.find("\u732b") == apart.words[1].positions
    # No character is torn: \u304b (ka) is not in \u304c (ga), however it is written.
    assert read("\u304c\u304f").find("\u304b\u3099") == read("\u304b\u3099\u304f").find("\u304c") != ()
    with pytest.raises(PromptError, match="is not in the prompt"):
        read("\u304b\u3099\u304f").find("\u304b")
    # With Latin letters in one phrase.
    mixed = read("red\u732b and \u72d7")
    assert mixed.find("red \u732b") == mixed.words[0].positions + mixed.words[1].positions


def test_half_a_character_is_refused(read):
    with pytest.raises(PromptError, match=r"'a \\ud83d cat' is not valid text: its character 3 is half of a pair"):
        read("a \ud83d cat")


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


class _Counted(int):
    """A number that counts how often it is compared."""

    count = 0

    def __lt__(self, other):
        _Counted.count += 1
        return int(self) < int(other)

    def __le__(self, other):
        _Counted.count += 1
        return int(self) <= int(other)

    def __gt__(self, other):
        _Counted.count += 1
        return int(self) > int(other)


@pytest.mark.parametrize("text", ["a cat and ", "cat", "\U0001f431", "\u732b", "<", "(a:1", "!", "a\u200b"])
def test_the_work_grows_with_the_length_of_the_text_alone(tokenizer, text):
    """The spans of tokens are compared a fixed number of times for each token and word; few tokens are asked for."""
    seen = []

    class Counting:
        def __init__(self):
            self.all_special_tokens, self.pad_token_id = tokenizer.all_special_tokens, tokenizer.pad_token_id
            self.get_added_vocab, self.convert_ids_to_tokens = (
                tokenizer.get_added_vocab,
                tokenizer.convert_ids_to_tokens,
            )

        def __call__(self, text, **options):
            encoded = tokenizer(text, **options)
            seen.append(len(encoded["input_ids"]))
            spans = [tuple(map(_Counted, span)) for span in encoded["offset_mapping"]]
            return {"input_ids": encoded["input_ids"], "offset_mapping": spans}

    _Counted.count = 0
    prompt = parse(text * (10_000 // len(text)), Counting(), 77)
    assert len(seen) == 1
    assert _Counted.count <= 4 * (seen[0] + len(prompt.words)) + 10
    if len(prompt.words) > 8 * 77:
        assert seen[0] < 8 * 77 * 12, "words beyond the model's reach are not tokenized"
        assert "more than" in prompt.size

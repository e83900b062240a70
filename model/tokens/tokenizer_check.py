"""Checks that a folder's `tokenizer.json` turns text into the same ids as `Tokenizer` (RECIPE B).

The vocabulary alone does not say so: the same tokens under another split, normaliser or order of merges give other ids. A
model is worth nothing under ids that it was not trained on. So texts are encoded both ways and decoded again: samples of
what splits and normalisers treat in different ways, and every token of the vocabulary, which shows the order of merges. A
short vocabulary has few tokens for a split to matter to (none of two digits, say), so the pieces are compared too.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers

from model.tokens.dolma2 import ADDED_TOKENS
from model.tokens.tokenizer import Tokenizer

SAMPLES = (
    "The cat sat on the mat. Was it there?",
    "In 1234567 of 10000 cases, 3.14159 and 007 cost $12,345.67.",
    "It's what they'LL say: we've, I'm, you'd, don't, CAN'T, o'clock, 'tis.",
    "O'Sample l'TEll we'REady I'Mine they'LLama qu'Depend; o'sample l'tell we'ready",
    "   two  and   three    spaces \t\t tabs \n\n\n lines \r\n windows   \n",
    " a leading space",
    "no leading space",
    "def f(x):\n    return x ** 2  # squared\n\n\n\tif not y: f(_a.b[0])\n",
    "int main() {\n    call(a, b);\n    return 0;\n}\r\n",
    "<html>&amp;{\"a\": [1, -2]} != 'b'; ... --- ?!?! ===>>>\n",
    "我喜欢编程。日本語のテキスト、한국어 텍스트",
    "مرحبا हिन्दी ไทย Привет, Ελλάδα",
    "cafe\u0301 caf\u00e9 \ufb01ne \uff21\uff22 \u00bd \u2460 Stra\u00dfe \u212b \u0130",
    "😀👩‍👩‍👧 emoji 🇩🇪",
    "\u00a0odd\u3000spaces\u2009here\u200b",
    "\\boxed{\\frac{1}{2}} $x^2$",
    "UPPER lower Mixed camelCase snake_case kebab-case",
    "a" * 200 + " " * 100 + "\n" * 50 + "1" * 40,
    *(f"x {text} y{text}z" for text, _ in ADDED_TOKENS),
)
"""Fixed texts: digits, contractions, whitespace runs, code, scripts, what Unicode normalisation changes, added tokens."""
_SHOWN = 3
"""Texts that an error quotes."""


def check_encodings(folder: Path, tokenizer: Tokenizer) -> None:
    """Raises ValueError, which quotes texts, when `tokenizer.json` in the folder encodes or decodes any in another way."""
    path = folder / "tokenizer.json"
    theirs = _opened(path)
    texts = [*SAMPLES, *_token_texts(tokenizer)]
    ours = [tokenizer.encode_with_special(text) for text in texts]
    found = [encoding.ids for encoding in theirs.encode_batch(texts)]
    if different := [place for place, ids in enumerate(ours) if ids != found[place]]:
        raise ValueError(_told(path, "encode", texts, found, ours, different))
    decoded = theirs.decode_batch(ours, skip_special_tokens=False)
    # OLMo 2's gives the text back, OLMo 1's the text after its normalisation.
    meant = [tokenizer.decode(ids, skip_special=False) for ids in ours]
    if different := [place for place, text in enumerate(meant) if text != decoded[place]]:
        raise ValueError(_told(path, "decode", texts, decoded, meant, different))
    wanted, pieces = ([_pieces(each, text) for text in SAMPLES] for each in (_reference(tokenizer), theirs))
    if different := [place for place, cut in enumerate(wanted) if cut != pieces[place]]:
        raise ValueError(_told(path, "split", texts, pieces, wanted, different))


def _reference(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    """What we save, with the shortest vocabulary: the split is the same with any."""
    return tokenizers.Tokenizer.from_str(json.dumps(Tokenizer(256, tokenizer.name).tokenizer_json()))


def _pieces(tokenizer: tokenizers.Tokenizer, text: str) -> list[str]:
    """The pieces that merges stay inside of."""
    text = tokenizer.normalizer.normalize_str(text) if tokenizer.normalizer else text
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] if tokenizer.pre_tokenizer else [text]


def _opened(path: Path) -> tokenizers.Tokenizer:
    try:
        theirs = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise ValueError(f"{path} is no tokenizer that can be read ({error}); fetch it again") from error
    # Left there by the last program that used it; readers set their own at each call.
    theirs.no_truncation()
    theirs.no_padding()
    if dropout := getattr(theirs.model, "dropout", None):
        raise ValueError(f"{path} has dropout {dropout}: it encodes a text in another way each time; set it to null")
    return theirs


def _token_texts(tokenizer: Tokenizer) -> list[str]:
    """The ordinary tokens that are whole characters."""
    added = tokenizer.added_ids
    pieces = (token for id, token in enumerate(tokenizer.token_bytes()) if id not in added)
    return [text for piece in pieces if (text := piece.decode("utf-8", errors="ignore"))]


def _told(
    path: Path,
    verb: str,
    texts: Sequence[str],
    found: Sequence[object],
    wanted: Sequence[object],
    places: Sequence[int],
) -> str:
    samples = sum(place < len(SAMPLES) for place in places)
    shown = "; ".join(
        f"{texts[place]!r:.80} gives {found[place]!r:.80}, not {wanted[place]!r:.80}" for place in places[:_SHOWN]
    )
    return (
        f"{path} is not OLMo 2's tokenizer though it has its vocabulary: {samples} of {len(SAMPLES)} sample texts and "
        f"{len(places) - samples:,} of {len(texts) - len(SAMPLES):,} tokens {verb} differently: {shown}. Its split, normalizer, "
        "merges or decoder is another; a model trained with it cannot be continued here"
    )

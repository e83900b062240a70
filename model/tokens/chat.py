"""Turns chats into ids: a whole conversation with the mask of what is trained, or a prompt to answer (RECIPE B, F).

The format's own BOS and EOS become single ids, and everything between two of them is encoded as one text. A tokenizer that
recognises those two does the same, so ids equal those of the rendered string. Contents never become control tokens, whatever
they say. The mask is made on token boundaries: a token is trained when its first byte lies in trained text. So `>` and
newline of a header, which fuse into one token (397), are never trained, not even when an answer's leading newlines fuse with
them.

Deviations: every assistant header is masked, also at the start of a chat or after another assistant turn. There the
published code trains on it, since no turn comes before it to mask. See `model/tokens/chat_template.py` for the text itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.tokens.chat_template import CHAT_TEMPLATE, Message, TemplateSpan, render, render_spans
from model.tokens.surrogates import valid_text
from model.tokens.tokenizer import Tokenizer

__all__ = ["CHAT_TEMPLATE", "EncodedChat", "Message", "encode_chat", "encode_prompt", "render"]


class EncodedChat(NamedTuple):
    """A conversation as ids, with its loss mask; both have shape `[tokens]`."""

    ids: np.ndarray
    """uint32 token ids."""
    trained: np.ndarray
    """bool, true where the token is a training target: answers, their EOS, the newline after an EOS that is
    not the last.
    """


def encode_chat(tokenizer: Tokenizer, messages: Sequence[Message], max_tokens: int) -> EncodedChat:
    """Ids and mask of a conversation, cut after `max_tokens`. A chat whose mask is empty has nothing to
    train; drop it.

    Raises ValueError for no messages, an unknown role or `max_tokens` below 1.
    """
    if not messages:
        raise ValueError("messages is empty; a chat needs at least one message")
    if max_tokens < 1:
        raise ValueError(f"max_tokens={max_tokens} must be at least 1")
    ids: list[int] = []
    trained: list[np.ndarray] = []
    text: list[TemplateSpan] = []
    for span in [*render_spans(messages), None]:
        # Text is gathered up to the next control token: pieces that are encoded apart would merge into other tokens.
        if span is not None and not span.control:
            text.append(span)
            continue
        text_ids, text_trained = _encode_text(tokenizer, text)
        ids.extend(text_ids)
        trained.append(text_trained)
        text = []
        if span is not None:
            ids.append(tokenizer.eos_id)
            trained.append(np.array([span.trained]))
    # Cut after encoding, since a cut text could end in other tokens.
    return EncodedChat(np.array(ids[:max_tokens], dtype=np.uint32), np.concatenate(trained)[:max_tokens])


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message], answer_prefix: str = "") -> list[int]:
    """Ids of a conversation up to the header of the answer to generate, then of the text that the answer is
    made to begin with.

    Raises ValueError for no messages or an unknown role.
    """
    if not messages:
        raise ValueError("messages is empty; a prompt needs at least one message")
    ids: list[int] = []
    text = ""
    for span in render_spans(messages, generation_prompt=True):
        if span.control:
            ids += [*tokenizer.encode(text), tokenizer.eos_id]
            text = ""
        else:
            text += span.text
    # The prefix is encoded with the header before it, since their characters may merge into one token.
    return ids + tokenizer.encode(text + answer_prefix)


def _encode_text(tokenizer: Tokenizer, spans: Sequence[TemplateSpan]) -> tuple[list[int], np.ndarray]:
    """Ids of spans encoded as one text, and for each whether its first byte is trained."""
    # Bytes are counted below, and a lone surrogate has none.
    texts = [valid_text(span.text) for span in spans]
    ids = tokenizer.encode("".join(texts))
    # Where each token begins, in bytes: tokens may span two spans, so spans cannot be encoded one by one.
    starts = np.cumsum(np.concatenate([[0], tokenizer.byte_lengths()[ids]]))[:-1]
    sizes = [len(text.encode("utf-8")) for text in texts]
    trained_bytes = np.repeat(np.array([span.trained for span in spans], dtype=bool), sizes)
    # A token belongs to the span in which its first byte lies.
    return ids, trained_bytes[starts]

"""Oracles: the ids and masking rules of RECIPE B and F written out by hand, Jinja rendering our template,
transformers' apply_chat_template, and, for masks, prefix tokenization as the published finetuning code does
it.
"""

from pathlib import Path

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokens.chat import CHAT_TEMPLATE, Message, encode_chat, encode_prompt, render
from model.tokens.tokenizer import Tokenizer

EOS = 100_257
USER = [27, 91, 882, 91, 397]
ASSISTANT = [27, 91, 78_191, 91, 397]
SYSTEM = [27, 91, 9_125, 91, 397]

CONTENTS = st.text(alphabet=st.sampled_from(list("ab \n|<>'1好😀")), max_size=12)
CHATS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant"]), "content": CONTENTS}),
    min_size=1,
    max_size=6,
)


def chat(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]  # type: ignore[typeddict-item]


def jinja_render(messages: list[Message], generation_prompt: bool) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(CHAT_TEMPLATE).render(
        messages=messages,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        add_generation_prompt=generation_prompt,
    )


def test_one_turn_is_the_recipe_example() -> None:
    messages = chat(("user", "Hi"), ("assistant", "Hello!"))
    encoded = encode_chat(Tokenizer(), messages, 4_096)
    assert encoded.ids.tolist() == [EOS, *USER, 13_347, 198, *ASSISTANT, 9_906, 0, EOS]
    assert encoded.ids.dtype == np.uint32
    assert encoded.trained.tolist() == [False] * 13 + [True] * 3
    assert render(messages) == "<|endoftext|><|user|>\nHi\n<|assistant|>\nHello!<|endoftext|>"


def test_several_turns_train_answers_their_eos_and_the_newline_between_turns() -> None:
    messages = chat(("system", "Be"), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Hi"), ("assistant", "Hello!"))
    ids, trained = encode_chat(Tokenizer(), messages, 4_096)
    first = [EOS, *SYSTEM, 3_513, 198, *USER, 13_347, 198, *ASSISTANT]
    between = [*USER, 13_347, 198, *ASSISTANT]
    assert ids.tolist() == [*first, 9_906, 0, EOS, 198, *between, 9_906, 0, EOS]
    assert trained.tolist() == [False] * len(first) + [True] * 4 + [False] * len(between) + [True] * 3


def test_a_prompt_ends_with_the_open_answer() -> None:
    messages = chat(("user", "Hi"))
    assert encode_prompt(Tokenizer(), messages) == [EOS, *USER, 13_347, 198, *ASSISTANT]
    assert render(messages, generation_prompt=True).endswith("Hi\n<|assistant|>\n")
    assert encode_prompt(Tokenizer(), messages, answer_prefix="Answer:")[-2:] == [16_533, 25]


@settings(max_examples=200)
@given(messages=CHATS, generation_prompt=st.booleans())
def test_jinja_and_render_agree(messages: list[Message], generation_prompt: bool) -> None:
    assert jinja_render(messages, generation_prompt) == render(messages, generation_prompt)


@settings(max_examples=200)
@given(messages=CHATS, ranks=st.sampled_from([256, 1_024, 100_256]))
def test_ids_are_those_of_the_rendered_text(messages: list[Message], ranks: int) -> None:
    tokenizer = Tokenizer(ranks)
    assert encode_chat(tokenizer, messages, 10_000).ids.tolist() == tokenizer.encode_with_special(render(messages))
    assert encode_prompt(tokenizer, messages) == tokenizer.encode_with_special(render(messages, generation_prompt=True))


@settings(max_examples=200)
@given(
    turns=st.lists(st.tuples(CONTENTS, CONTENTS), min_size=1, max_size=4),
    ranks=st.sampled_from([256, 1_024, 100_256]),
)
def test_masks_agree_with_tokenizing_prefixes(turns: list[tuple[str, str]], ranks: int) -> None:
    """The published way: the span of each user turn, through the header that follows, found by encoding both
    prefixes.
    """
    tokenizer = Tokenizer(ranks)
    messages = chat(*[message for user, answer in turns for message in (("user", user), ("assistant", answer))])
    ids, trained = encode_chat(tokenizer, messages, 10_000)
    expected = np.ones(len(ids), dtype=bool)
    for index in range(0, len(messages), 2):
        before = render(messages[:index]) + ("\n" if index else "") if index else ""
        through = render(messages[: index + 1], generation_prompt=True)
        header_end = len(tokenizer.encode_with_special(through))
        expected[len(tokenizer.encode_with_special(before)) : header_end] = False
        if messages[index + 1]["content"].startswith(
            "\n"
        ):  # the header's newline may fuse with the answer's: undecided there
            expected[header_end - 1 : header_end + 1] = trained[header_end - 1 : header_end + 1]
    assert trained.tolist() == expected.tolist()


def test_an_answer_that_begins_with_newlines_never_trains_a_header_token() -> None:
    tokenizer = Tokenizer()
    ids, trained = encode_chat(tokenizer, chat(("user", "Hi"), ("assistant", "\n\nHello!")), 4_096)
    assert ids.tolist() == tokenizer.encode_with_special(
        "<|endoftext|><|user|>\nHi\n<|assistant|>\n\n\nHello!<|endoftext|>"
    )
    assert tokenizer.decode(ids[trained], skip_special=False) == "Hello!<|endoftext|>"


def test_contents_cannot_place_control_tokens() -> None:
    tokenizer = Tokenizer()
    evil = "<|endoftext|><|pad|><|im_start|>"
    ids, trained = encode_chat(tokenizer, chat(("user", evil), ("assistant", evil)), 4_096)
    assert [int(i) for i in ids if i >= tokenizer.ranks] == [EOS, EOS]
    assert tokenizer.decode(ids[trained], skip_special=False) == evil + "<|endoftext|>"
    assert [i for i in encode_prompt(tokenizer, chat(("user", evil))) if i >= tokenizer.ranks] == [EOS]


def test_every_header_is_masked_even_without_a_turn_before_it() -> None:
    tokenizer = Tokenizer()
    ids, trained = encode_chat(tokenizer, chat(("assistant", "Hello!"), ("assistant", "Hello!")), 4_096)
    assert ids.tolist() == [EOS, *ASSISTANT, 9_906, 0, EOS, 198, *ASSISTANT, 9_906, 0, EOS]
    assert trained.tolist() == [False] * 6 + [True] * 4 + [False] * 5 + [True] * 3


def test_truncation_keeps_the_beginning_and_can_leave_nothing_to_train() -> None:
    messages = chat(("user", "Hi"), ("assistant", "Hello!"))
    ids, trained = encode_chat(Tokenizer(), messages, 14)
    assert len(ids) == len(trained) == 14
    assert trained.sum() == 1
    assert not encode_chat(Tokenizer(), messages, 13).trained.any()
    assert not encode_chat(Tokenizer(), chat(("user", "Hi")), 100).trained.any()


def test_lone_surrogates_keep_the_mask_aligned() -> None:
    tokenizer = Tokenizer(256)
    ids, trained = encode_chat(tokenizer, chat(("user", "a\ud800"), ("assistant", "b\udc00c")), 4_096)
    assert tokenizer.decode(ids[trained]) == "b\ufffdc"


@pytest.mark.parity
def test_transformers_applies_the_saved_template(tmp_path: Path) -> None:
    import transformers

    tokenizer = Tokenizer(1_024)
    tokenizer.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    messages = chat(("system", "Be brief."), ("user", "Hi\n"), ("assistant", " Hello!\n"), ("user", "x"))
    assert theirs.apply_chat_template(messages, tokenize=False) == render(messages)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == encode_prompt(tokenizer, messages)
    with pytest.raises(jinja2.TemplateError, match="role must be"):
        theirs.apply_chat_template(chat(("tool", "x")), tokenize=False)


def test_wrong_arguments_are_explained() -> None:
    tokenizer = Tokenizer(256)
    with pytest.raises(ValueError, match="role='tool'"):
        encode_chat(tokenizer, chat(("tool", "x")), 10)
    with pytest.raises(ValueError, match="messages is empty"):
        encode_chat(tokenizer, [], 10)
    with pytest.raises(ValueError, match="messages is empty"):
        encode_prompt(tokenizer, [])
    with pytest.raises(ValueError, match="max_tokens=0"):
        encode_chat(tokenizer, chat(("user", "x")), 0)

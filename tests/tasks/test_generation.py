"""Oracle: local decoding, which a server of the same weights must equal. The server speaks the protocol on a real
socket and decodes with the model itself.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch

from infra.execution.attempt import run_stage
from infra.language_models.client import Endpoint, EndpointError
from infra.session import Session
from infra.settings import EndpointSettings, Execution
from infra.stage import stage
from infra.storage.store import Store
from infra.workspace import Workspace
from model.config import Config
from model.decoding.generate import Sampling, generate
from model.network.transformer import Transformer
from tasks.artifacts import Checkpoint, Documents
from tasks.generation import checkpoint_generator, local_generator, server_generator
from tests.openai_server import OpenAIServer
from tests.tasks.training.conftest import TINY, TOKENIZER, Seed, make_checkpoint

MODEL = Transformer(TINY.model_copy(update={"init_std": 0.3}), seed=0)
PROMPTS = [TOKENIZER.encode(text) for text in ("Question: 1+1?", "a", "Once upon a time there was", "7")]


def served(model: Transformer = MODEL, name: str = "served"):
    """A reply of the completions route, as vLLM's: what was sampled, stop tokens and all, and its log-probabilities."""

    def reply(body: dict[str, Any]) -> dict[str, Any] | int:
        if body["model"] != name:
            return 404
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            temperature=body["temperature"],
            top_p=body["top_p"],
            stop=tuple(body.get("stop", ())),
            seed=body.get("seed", 0),
        )
        assert body["return_token_ids"] and body["logprobs"] == 0
        answer = generate(model, TOKENIZER, [body["prompt"]], sampling)[0]
        choice = {
            "index": 0,
            "text": answer.text,
            "finish_reason": answer.finish,
            "token_ids": answer.ids,
            "logprobs": {"tokens": [str(i) for i in answer.ids], "token_logprobs": answer.logprobs},
        }
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(answer.ids)}
        return {"choices": [choice], "usage": usage}

    return reply


def ask(server: OpenAIServer, prompts: list[list[int]], sampling: Sampling, name: str = "served", **arguments: Any):
    with Endpoint(name, EndpointSettings(url=server.url, concurrency=4, first_wait_seconds=0.01)) as endpoint:
        return server_generator(endpoint, TOKENIZER, TINY.max_sequence_length)(prompts, sampling, **arguments)


@pytest.mark.parametrize("stop", [(), ("e", " t")])
def test_a_server_gives_the_completions_of_local_decoding(stop):
    sampling = Sampling(max_new_tokens=24, stop=stop)
    local = local_generator(MODEL, TOKENIZER, "fp32")(PROMPTS, sampling)
    told: list[int] = []
    with OpenAIServer(served(), faults=True, stall_seconds=0.1) as server:
        answers = ask(server, PROMPTS, sampling, progress=told.append)
    assert sum(told) == len(PROMPTS)
    assert [(a.ids, a.text, a.finish) for a in answers] == [(a.ids, a.text, a.finish) for a in local]
    for ours, theirs in zip(local, answers, strict=True):
        torch.testing.assert_close(torch.tensor(theirs.logprobs), torch.tensor(ours.logprobs), atol=1e-4, rtol=0)


def test_equal_prompts_are_sampled_apart_and_again_alike():
    sampling = Sampling(max_new_tokens=16, temperature=1.0, seed=5)
    with OpenAIServer(served()) as server:
        first, again = (ask(server, [PROMPTS[0]] * 3, sampling) for _ in range(2))
        other = ask(server, [PROMPTS[0]] * 3, Sampling(max_new_tokens=16, temperature=1.0, seed=6))
        [third] = ask(server, [PROMPTS[0]], replace(sampling, first_prompt=2))
    assert [a.ids for a in first] == [a.ids for a in again]
    assert third.ids == first[2].ids
    assert len({tuple(a.ids) for a in first + other}) == 6
    assert len({body["seed"] for body in server.bodies}) == 6


def test_answers_end_at_the_edge_of_the_window():
    prompt = list(range(120))
    with OpenAIServer(served()) as server:
        answer = ask(server, [prompt], Sampling(max_new_tokens=50))[0]
        assert answer.ids == local_generator(MODEL, TOKENIZER, "fp32")([prompt], Sampling(max_new_tokens=50))[0].ids
        with pytest.raises(ValueError, match=r"prompt 1 has 128 tokens.*between 1 and 127"):
            ask(server, [prompt, list(range(128))], Sampling(max_new_tokens=5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": None}, "ids absent.*return_token_ids"),
        ({"logprobs": None}, "log-probabilities 0"),
        ({"finish_reason": "abort"}, "'abort'"),
    ],
)
def test_a_server_that_says_too_little_is_refused(changes, message):
    def reply(body: dict[str, Any]) -> dict[str, Any]:
        made = served()(body)
        assert isinstance(made, dict)
        return made | {"choices": [made["choices"][0] | changes]}

    with OpenAIServer(reply) as server, pytest.raises(ValueError, match=message):
        ask(server, PROMPTS, Sampling(max_new_tokens=4))


def test_a_refused_prompt_is_an_error():
    with OpenAIServer(lambda body: 400) as server, pytest.raises(ValueError, match="refuses prompt 0: HTTP 400"):
        ask(server, PROMPTS, Sampling(max_new_tokens=4))


def write_answers(ws: Workspace, checkpoint: Checkpoint, config: Config) -> Documents:
    """A stage that answers with its checkpoint."""
    with checkpoint_generator(ws, checkpoint, MODEL, TOKENIZER, "fp32") as generator:
        answers = generator(PROMPTS, Sampling(max_new_tokens=12))
    ws.write_json("answers.json", [answer.ids for answer in answers])
    return ws.artifact(Documents, documents=len(answers), bytes=0, sources={})


def test_execution_chooses_who_answers_and_the_digest_names_the_weights(tmp_path):
    def run(execution: Execution, name: str = "answer") -> Any:
        session = Session(Store(str(tmp_path)), execution)
        made = run_stage(
            stage(make_checkpoint, name="base", version=1), session, {"config": Seed()}, lambda event: None
        )
        arguments = {"checkpoint": made.artifact, "config": Config()}
        answered = run_stage(stage(write_answers, name=name, version=1), session, arguments, lambda event: None)
        return made.artifact, session.store.read_json(f"{answered.record.payload}/answers.json")

    here = Execution(store=str(tmp_path), ray="off", cores=1)
    checkpoint, local = run(here)

    def there(server: OpenAIServer) -> Execution:
        endpoints = {"default": EndpointSettings(url=server.url)}
        return here.model_copy(update={"generation": {"default": "endpoint"}, "endpoints": endpoints})

    with OpenAIServer(served(name="other weights")) as server, pytest.raises(EndpointError, match="HTTP 404"):
        run(there(server), "served")
    with OpenAIServer(served(name=checkpoint.digest)) as server:
        assert run(there(server), "served") == (checkpoint, local)
        assert server.sent.total() == len(PROMPTS)

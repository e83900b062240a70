"""The client of language models against the vendor's own (`openai`), over real sockets on this machine.

Run alone: `python benchmarks/inference.py [--requests 1500] [--concurrency 64] [--openai-python P]`; the peer gets an
environment of its own (.venv-openai), made when missing. A server in a process of its own answers every chat request at
once with 200 tokens, so what is measured is what a client costs. Contestants run in turns, each in a fresh process that
reports its CPU seconds (user and system) from first request to last answer; other load on the machine does not enter them.

* ours: without memory, as generation uses it; `remembered`: every answer written to a store; `again`: every answer read from it.
* openai: `AsyncOpenAI.chat.completions.create` under a semaphore, its retries on.
* aiohttp: bare posts with one session under a semaphore: what our transport allows.
* httpx: the same with the peer's transport.

The last line is one JSON object: requests per CPU second of each, `ratio_openai` (ours over theirs), `share_of_aiohttp`.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from peers.environment import peer_python

OPENAI = "openai>=2,<3"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "word " * 200},
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300},
    }
).encode()
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(ANSWER)


def prompt(number: int) -> str:
    return f"{number}: " + "some text to rewrite " * 20


async def serve(pipe: Any) -> None:
    """Answer every request with the same bytes, at as little cost as possible."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
                await reader.readexactly(int(length.split(b":")[1]))
                writer.write(HEAD + ANSWER)
        except (asyncio.IncompleteReadError, ConnectionResetError):
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve_in_process(pipe: Any) -> None:
    asyncio.run(serve(pipe))


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def ours(url: str, requests: int, concurrency: int, folder: str) -> None:
    from infra.language_models.client import Endpoint
    from infra.language_models.protocol import AnswerMemory, chat_request
    from infra.settings import EndpointSettings
    from infra.storage.store import Store

    memory = AnswerMemory(Store(folder)) if folder else None
    with Endpoint("m", EndpointSettings(url=url, concurrency=concurrency), memory) as endpoint:
        asked = (chat_request("m", [{"role": "user", "content": prompt(i)}], temperature=0.7) for i in range(requests))
        assert sum(len(answer.text) for answer in endpoint.ask(asked)) == 1000 * requests


async def theirs(url: str, requests: int, concurrency: int) -> None:
    from openai import AsyncOpenAI  # pyright: ignore[reportMissingImports] # in the peer's environment only

    slots = asyncio.Semaphore(concurrency)
    async with AsyncOpenAI(base_url=url, api_key="none") as client:

        async def ask(number: int) -> int:
            async with slots:
                answer = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": prompt(number)}], temperature=0.7
                )
                return len(answer.choices[0].message.content)

        assert sum(await asyncio.gather(*map(ask, range(requests)))) == 1000 * requests


async def bare_httpx(url: str, requests: int, concurrency: int) -> None:
    import httpx

    slots = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=concurrency)
    async with httpx.AsyncClient(limits=limits) as client:

        async def ask(number: int) -> int:
            async with slots:
                body = {"model": "m", "messages": [{"role": "user", "content": prompt(number)}], "temperature": 0.7}
                answer = await client.post(f"{url}/chat/completions", json=body)
                return len(answer.json()["choices"][0]["message"]["content"])

        assert sum(await asyncio.gather(*map(ask, range(requests)))) == 1000 * requests


async def bare_aiohttp(url: str, requests: int, concurrency: int) -> None:
    import aiohttp

    slots = asyncio.Semaphore(concurrency)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(number: int) -> int:
            async with slots:
                body = {"model": "m", "messages": [{"role": "user", "content": prompt(number)}], "temperature": 0.7}
                async with session.post(f"{url}/chat/completions", json=body) as answer:
                    return len((await answer.json())["choices"][0]["message"]["content"])

        assert sum(await asyncio.gather(*map(ask, range(requests)))) == 1000 * requests


def contest(name: str, url: str, requests: int, concurrency: int, folder: str) -> None:
    """One contestant in this process; prints its requests per CPU second. A few requests first: imports are not measured."""
    for count in (concurrency, requests):
        before = cpu_seconds()
        match name:
            case "ours":
                ours(url, count, concurrency, "")
            case "remembered" | "again":
                ours(url, count, concurrency, folder if count == requests else "")
            case "openai":
                asyncio.run(theirs(url, count, concurrency))
            case "aiohttp":
                asyncio.run(bare_aiohttp(url, count, concurrency))
            case "httpx":
                asyncio.run(bare_httpx(url, count, concurrency))
    print(json.dumps(requests / (cpu_seconds() - before)))


def measure(python: str, name: str, url: str, arguments: argparse.Namespace, folder: str) -> float:
    root = Path(__file__).resolve().parents[1]
    command = [python, __file__, "--contest", name, "--url", url, "--folder", folder]
    command += ["--requests", str(arguments.requests), "--concurrency", str(arguments.concurrency)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)}, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--openai-python", default="", help="an interpreter that has openai")
    parser.add_argument("--contest", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contest:
        return contest(arguments.contest, arguments.url, arguments.requests, arguments.concurrency, arguments.folder)
    peer = peer_python("openai", [OPENAI], arguments.openai_python)
    here, there = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve_in_process, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}/v1"
    best: dict[str, float] = {}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            for name in ("ours", "openai", "aiohttp", "httpx", "remembered", "again"):
                rate = measure(peer if name == "openai" else sys.executable, name, url, arguments, folder)
                best[name] = max(best.get(name, 0.0), rate)
    server.terminate()
    for name, rate in best.items():
        print(f"{name:>10}: {rate:7,.0f} requests per CPU second")
    ratios = {"ratio_openai": best["ours"] / best["openai"], "share_of_aiohttp": best["ours"] / best["aiohttp"]}
    print(json.dumps({key: round(value, 3) for key, value in (best | ratios).items()}))
    return None


if __name__ == "__main__":
    main()

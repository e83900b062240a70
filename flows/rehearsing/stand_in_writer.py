"""A stand-in for the language models of a recipe that names no endpoint for them: for rehearsals, on the loopback interface.

It speaks the OpenAI protocol and answers by rule, in the form that the stages' own prompts ask for: a problem, a solution with
its last line, a conversation that holds the text, a label, ratings. What it writes is of no use but to carry a rehearsal on.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FILLER = "We read it slowly, we say what is given, we say what is asked, and we check each step before we go on to the next one. "


@contextmanager
def stand_in_writer() -> Iterator[str]:
    """Start the server; yields its base URL, and stops it at the end."""
    # Port 0 lets the system choose one that is free.
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    # Asked every 50 ms whether it should end; the default is half a second.
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True, name="stand-in writer")
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(prompt: str) -> str:
    """What the stand-in says to the last message of a chat."""
    if 'Reply with the words "Math problem:"' in prompt:
        return (
            f"Math problem: {_after(prompt, 'Person:')} counts 12 baskets and then 5 more. How many baskets are there?"
        )
    if "Final Answer: The final answer is" in prompt:
        return "12 and 5 are added.\n12 + 5 = 17\nFinal Answer: The final answer is $17$. I hope it is correct."
    if "Reply with one block for each text" in prompt:
        texts = len(re.findall(r"^Text \d+:", prompt, re.MULTILINE))
        return "\n\n".join(_rating(number, "Type: " in prompt) for number in range(1, texts + 1))
    if "Score: N" in prompt:
        # By the prompt's length, so that a rehearsal repeated gives the same answers.
        return f"It has {len(prompt.split()) % 6} of the properties.\nScore: {len(prompt.split()) % 6}"
    if "Mathematics: yes or no" in prompt:
        return f"Mathematics: {'yes' if len(prompt) % 2 else 'no'}"
    # The text to rewrite stands between the first and the last blank line of the prompt.
    text = prompt.partition("\n\n")[2].rpartition("\n\n")[0]
    return f"Student 1: {FILLER * 3}\nStudent 2: {text.strip()}"


def _after(prompt: str, word: str) -> str:
    return prompt.partition(word)[2].strip().partition("\n")[0]


def _rating(number: int, typed: bool) -> str:
    kind = "Type: none\n" if typed else ""
    return f"Text {number}\n{kind}Rating: {1 + number % 5}\nRationale: It is the text of number {number}."


def completion(prompt: str) -> dict[str, object]:
    """The answer's JSON; words stand for tokens."""
    text = answer(prompt)
    return {
        "id": "stand-in",
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": len(prompt.split()), "completion_tokens": len(text.split())},
    }


class _Handler(BaseHTTPRequestHandler):
    # HTTP/1.1 keeps connections open, which a stage with 32 of them needs.
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""

    def do_POST(self) -> None:
        """Answer a chat."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        data = json.dumps(completion(body["messages"][-1]["content"])).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

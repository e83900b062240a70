"""Computes log-probabilities of many continuations, reading every distinct token once (RECIPE I.1).

All sequences form one tree of shared prefixes (`model/decoding/prefix_tree.py`): few-shot examples, questions and the first
letters that choices share go through the model once. Small subtrees are flattened into rows whose mask lets a token see its
own ancestors only. The prefix before them is read from the KV cache, by one matmul for all rows. The head is applied to
scored places only, once per place: choices of one token are read off the same logits.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from model.decoding.prefix_tree import Node, Step, build, schedule
from model.decoding.prepared_weights import Prepared
from model.decoding.tree_attention import Layout, PrefixKeys, TreeAttention
from model.network.transformer import Transformer

Scored = tuple[Sequence[int], int]
"""Ids of context and continuation joined, and how many at their end are scored."""

_PLACES = {"cpu": 128}  # places per matmul with the head
_PLACES_ELSEWHERE = 1_024
_HEAD_ROWS = {
    "cpu": 8_192
}  # vocabulary rows per matmul: logits of 128 places are 4 MB then, and stay in a CPU's caches
_WAITING_ROWS = 512  # places that wait for the head: matmuls of few rows are slow
_SCORE_ELEMENTS = {"cpu": 1 << 24}  # attention scores held at once, in numbers: 64 MB of fp32
_SCORE_ELEMENTS_ELSEWHERE = 1 << 28


class KeptWeights:
    """The weights of a model that does not change, laid out once for all scorings until `release`.

    They take as much memory as the model again. Precision is autocast's at the first scoring.
    """

    def __init__(self) -> None:
        self._prepared: Prepared | None = None

    def of(self, model: Transformer) -> Prepared:
        """The weights for sequences as long as the model's window."""
        if self._prepared is None:
            self._prepared = _prepare(model, model.config.max_sequence_length + 1)
        return self._prepared

    def release(self) -> None:
        """Let the memory go; the next scoring lays the weights out again."""
        self._prepared = None


def _prepare(model: Transformer, length: int) -> Prepared:
    kind = model.device.type
    places, rows = _PLACES.get(kind, _PLACES_ELSEWHERE), _HEAD_ROWS.get(kind, model.config.vocab_size)
    return Prepared(model, places, length, head_rows=rows)


@torch.inference_mode()
def tree_log_likelihoods(
    model: Transformer,
    sequences: Sequence[Scored],
    *,
    batch_tokens: int,
    progress: Callable[[int], None] | None = None,
    kept: KeptWeights | None = None,
) -> list[float]:
    """Sum of log p (natural) of the scored ids of every sequence, in the order given; the sums are fp64."""
    if not sequences:
        return []
    longest = max(len(ids) - 1 for ids, _ in sequences)
    prepared = kept.of(model) if kept else _prepare(model, longest)
    scorer = _TreeScorer(prepared, sequences, progress)
    for step in schedule(scorer.nodes, scorer.batch_tokens(batch_tokens)):
        scorer.read(step)
    scorer.apply_head(everything=True)
    return [float(scorer.logprobs[numbers].sum()) for numbers in scorer.numbers]


class _TreeScorer:
    """The tree of all sequences, the prefixes that are kept, and the places that wait for the head."""

    def __init__(self, prepared: Prepared, sequences: Sequence[Scored], progress: Callable[[int], None] | None) -> None:
        fed = [tuple(ids[:-1]) for ids, _ in sequences]
        # Sorted and distinct: prefixes then lie next to each other, and equal contexts are read once.
        distinct = sorted(set(fed))
        self.nodes, ends = build(distinct)
        end_of = dict(zip(distinct, ends, strict=True))
        self.numbers: list[list[int]] = []
        self.users: list[list[int]] = []
        for index, ((ids, scored), key) in enumerate(zip(sequences, fed, strict=True)):
            self.numbers.append(self._targets(end_of[key], ids, scored, index))
        self.open = [len(numbers) for numbers in self.numbers]
        self.logprobs = np.full(len(self.users), np.nan)
        self.progress = progress
        self.device = prepared.device
        self.places = _PLACES.get(self.device.type, _PLACES_ELSEWHERE)
        self.prepared = prepared
        self.path: list[tuple[Node, PrefixKeys]] = []
        self.waiting: list[Tensor] = []
        self.expected: list[dict[int, int]] = []

    def _targets(self, node: Node | None, ids: Sequence[int], scored: int, index: int) -> list[int]:
        """Register the scored ids of a sequence that ends in a node; the numbers of their scores."""
        numbers = []
        # From the last place backwards, so the walk goes up the tree once.
        for place in range(len(ids) - 2, len(ids) - 2 - scored, -1):
            while node is not None and place < node.start:
                node = node.parent
            assert node is not None
            expected = node.targets.setdefault(place - node.start, {})
            number = expected.setdefault(ids[place + 1], len(self.users))
            if number == len(self.users):
                self.users.append([])
            self.users[number].append(index)
            numbers.append(number)
        return numbers

    def batch_tokens(self, wanted: int) -> int:
        """Padded tokens of one step: as many as wanted, fewer where their attention scores would take too much memory."""
        config = self.prepared.config
        most = _SCORE_ELEMENTS.get(self.device.type, _SCORE_ELEMENTS_ELSEWHERE)
        # Scores take heads x tokens x length numbers, whatever the weights are.
        return max(1, min(wanted, most // (config.n_heads * len(self.prepared.turns))))

    def read(self, step: Step) -> None:
        """Feed the step's rows; keep keys and values where later steps need them."""
        # Keys and values of a path are dropped as soon as the walk has left their subtree.
        while self.path and self.path[-1][0] is not step.prefix:
            self.path.pop()
        past = self.path[-1][1] if self.path else None
        layout = Layout(step.rows)
        attend = TreeAttention(self.prepared, layout, past, step.keeps)
        ids, positions, wanted = (
            torch.from_numpy(x).to(self.device) for x in (layout.ids, layout.positions, layout.wanted)
        )
        hidden = self.prepared.blocks(ids, self.prepared.turns[positions], attend, wanted)
        if step.keeps:
            self.path.append((step.rows[0][0], attend.kept))
        if len(hidden):
            self.waiting.append(hidden)
            self.expected += layout.expected
        self.apply_head(everything=False)

    def apply_head(self, everything: bool) -> None:
        """Log-probabilities of the places that wait, if they are many or the last ones."""
        if not self.expected or (not everything and len(self.expected) < _WAITING_ROWS):
            return
        finished = 0
        start = 0
        for hidden in torch.cat(self.waiting).split(self.places):
            expected = self.expected[start : start + len(hidden)]
            start += len(hidden)
            places = [place for place, targets in enumerate(expected) for _ in targets]
            ids = [target for targets in expected for target in targets]
            numbers = [number for targets in expected for number in targets.values()]
            # One place may predict several ids: choices of one token are read off the same logits.
            self.logprobs[numbers] = self._logprobs(hidden, places, ids)
            for number in numbers:
                for index in self.users[number]:
                    self.open[index] -= 1
                    finished += self.open[index] == 0
        self.waiting, self.expected = [], []
        if self.progress is not None and finished:
            self.progress(finished)

    def _logprobs(self, hidden: Float[Tensor, "places d_model"], places: list[int], ids: list[int]) -> np.ndarray:
        """log p of each id at its place. The softmax's sum is gathered over the pieces of the head."""
        place, target = torch.tensor([places, ids], device=self.device)
        chosen = torch.zeros(len(ids), device=self.device)
        sums, start = [], 0
        for logits in self.prepared.logit_parts(hidden):
            width = logits.shape[-1]
            inside = (target >= start) & (target < start + width)
            # Clamped only to index legally; `inside` keeps values of other pieces out.
            found = logits[place, (target - start).clamp(0, width - 1)]
            chosen = torch.where(inside, found, chosen)
            largest = logits.amax(-1, keepdim=True)
            sums.append(logits.sub_(largest).exp_().sum(-1).log_().add_(largest[:, 0]))
            start += width
        # log of the sum over all pieces of the vocabulary, joined without leaving the range of exp.
        return (chosen - torch.stack(sums).logsumexp(0)[place]).double().cpu().numpy()

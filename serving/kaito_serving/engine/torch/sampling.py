"""From logits to tokens, each row by its own settings.

Settings that every second request has (temperature, top-k, top-p, min-p) are computed for all rows at once; the others
are edits of a row's scores [V], in place, in the order of transformers' `generate`, so that an answer is the one that
`generate` gives alone. The sources of the formulas are named in `engine.base.SamplingParams`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kaito_serving.engine.base import SamplingParams, TokenLogprobs

_MOST_CANDIDATES = 1024  # up to this top-k, only the candidates are sorted and summed up


class Guide(Protocol):
    """What holds an answer to a grammar."""

    def forbid(self, scores: Tensor) -> None:
        """Set the scores [V] of tokens that cannot follow to -inf, in place."""
        ...

    def accept(self, token: int) -> bool:
        """Go on by one token; True when nothing can follow."""
        ...


class Sampler:
    """How the tokens of one row are chosen, and what that needs to remember.

    `tokens` is the row's list, the prompt's `prompt` tokens first; `add` appends to it.
    """

    def __init__(
        self,
        params: SamplingParams,
        tokens: list[int],
        *,
        vocabulary: int,
        device: torch.device,
        guide: Guide | None = None,
    ) -> None:
        self.params = params
        self.tokens = tokens
        self.prompt = len(tokens)
        self.guide = guide
        self.generator: torch.Generator | None = None
        if params.seed is not None:
            self.generator = torch.Generator(device=device).manual_seed(params.seed)
        self._seen: Tensor | None = None
        if params.repetition_penalty != 1.0:
            self._seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            self._seen[torch.tensor(sorted(set(tokens)), device=device)] = True
        self._counts: Tensor | None = None
        if params.presence_penalty or params.frequency_penalty:
            self._counts = torch.zeros(vocabulary, device=device)
        self._followers: dict[tuple[int, ...], set[int]] = {}
        if params.no_repeat_ngram_size:
            for end in range(1, len(tokens) + 1):
                self._remember_ngram(end)
        self._banned = self._index(
            sorted({*params.suppress_tokens, *(w[0] for w in params.bad_words_ids if len(w) == 1)}), device
        )
        self._ends = self._index(sorted(params.stop_token_ids), device)

    @property
    def answered(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - self.prompt

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.params.temperature == 0.0

    def add(self, token: int) -> None:
        """Take the chosen token in."""
        self.tokens.append(token)
        if self._seen is not None:
            self._seen[token] = True
        if self._counts is not None:
            self._counts[token] += 1
        self._remember_ngram(len(self.tokens))

    def edit(self, scores: Tensor) -> None:
        """Change a row's scores [V], in place, by everything that is not temperature, top-k, top-p or min-p."""
        p = self.params
        step = self.answered
        if p.logit_bias:
            ids = torch.tensor(list(p.logit_bias), device=scores.device)
            scores[ids] += torch.tensor(list(p.logit_bias.values()), device=scores.device)
        if self._seen is not None:
            penalised = torch.where(scores < 0, scores * p.repetition_penalty, scores / p.repetition_penalty)
            torch.where(self._seen, penalised, scores, out=scores)
        if self._counts is not None:
            scores -= p.frequency_penalty * self._counts + p.presence_penalty * (self._counts > 0)
        forbidden = self._repeating() | self._completing_bad_words()
        if forbidden:
            scores[torch.tensor(sorted(forbidden), device=scores.device)] = -math.inf
        if step < p.min_tokens and self._ends is not None:
            scores[self._ends] = -math.inf
        if step == 0 and p.forced_bos_token_id is not None:
            _only(scores, (p.forced_bos_token_id,))
        if step == p.max_tokens - 1 and p.forced_eos_token_ids:
            _only(scores, p.forced_eos_token_ids)
        if p.length_decay is not None and self._ends is not None and step > p.length_decay[0]:
            start, factor = p.length_decay
            scores[self._ends] += scores[self._ends].abs() * (factor ** (step - start) - 1)
        if self._banned is not None:
            scores[self._banned] = -math.inf
        if step == 0 and p.begin_suppress_tokens:
            scores[torch.tensor(p.begin_suppress_tokens, device=scores.device)] = -math.inf
        if self.guide is not None:
            self.guide.forbid(scores)

    def _repeating(self) -> set[int]:
        size = self.params.no_repeat_ngram_size
        if not size:
            return set()
        return self._followers.get(tuple(self.tokens[len(self.tokens) - size + 1 :]), set())

    def _remember_ngram(self, end: int) -> None:
        size = self.params.no_repeat_ngram_size
        if size and end >= size:
            self._followers.setdefault(tuple(self.tokens[end - size : end - 1]), set()).add(self.tokens[end - 1])

    def _completing_bad_words(self) -> set[int]:
        return {
            word[-1]
            for word in self.params.bad_words_ids
            if 1 < len(word) <= len(self.tokens) and tuple(self.tokens[1 - len(word) :]) == word[:-1]
        }

    @staticmethod
    def _index(ids: Sequence[int], device: torch.device) -> Tensor | None:
        return torch.tensor(ids, device=device) if ids else None


def choose(scores: Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The next token of each row by its scores [rows, V] in float32, which are changed; -1 where none is possible."""
    for row, sampler in enumerate(samplers):
        sampler.edit(scores[row])
    best, likeliest = scores.max(dim=-1)
    possible = torch.isfinite(best)
    chosen = likeliest.clone()
    drawn = [row for row, sampler in enumerate(samplers) if not sampler.greedy]
    if drawn:
        usable = possible.tolist()
        drawn = [row for row in drawn if usable[row]]
    alone = [row for row in drawn if samplers[row].generator is not None or _unusual(samplers[row].params)]
    for row in alone:
        probabilities = _as_generate(scores[row : row + 1], samplers[row].params).softmax(dim=-1)
        chosen[row] = torch.multinomial(probabilities, 1, generator=samplers[row].generator)[0, 0]
    together = [row for row in drawn if row not in set(alone)]
    few = [row for row in together if 0 < samplers[row].params.top_k <= _MOST_CANDIDATES]
    many = [row for row in together if row not in set(few)]
    for rows in (few, many):
        if rows:
            chosen[rows] = _draw(scores[rows], [samplers[row].params for row in rows])
    return torch.where(possible, chosen, -1).tolist()


def logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprobs]:
    """Of each row of `logits` [rows, V] in float32: the log probability of its token and of the `top` likeliest."""
    table = logits.log_softmax(dim=-1)
    own = table.gather(-1, torch.tensor(tokens, device=table.device)[:, None])[:, 0].tolist()
    values, ids = table.topk(top, dim=-1)
    return [
        TokenLogprobs(token, logprob, tuple(zip(row_ids, row_values, strict=True)))
        for token, logprob, row_ids, row_values in zip(tokens, own, ids.tolist(), values.tolist(), strict=True)
    ]


def _only(scores: Tensor, tokens: Sequence[int]) -> None:
    kept = torch.tensor(tokens, device=scores.device)
    scores.fill_(-math.inf)
    scores[kept] = 0.0


def _unusual(params: SamplingParams) -> bool:
    return params.typical_p < 1.0 or params.epsilon_cutoff > 0.0 or params.eta_cutoff > 0.0


def _draw(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """One token for each row of scores [rows, V], which are changed."""
    device = scores.device
    scores = scores / torch.tensor([p.temperature for p in params], device=device)[:, None]
    limits = [p.top_k if 0 < p.top_k < scores.shape[-1] else scores.shape[-1] for p in params]
    sort = any(p.top_p < 1.0 for p in params)
    ids: Tensor | None = None
    if sort or max(limits) < scores.shape[-1]:
        scores, ids = scores.topk(max(limits), dim=-1)
    probabilities = scores.softmax(dim=-1, dtype=torch.float64)
    if ids is not None and min(limits) < scores.shape[-1]:
        ranks = torch.arange(scores.shape[-1], device=device)[None]
        probabilities *= ranks < torch.tensor(limits, device=device)[:, None]
        probabilities /= probabilities.sum(dim=-1, keepdim=True)
    if sort:
        before = probabilities.cumsum(dim=-1) - probabilities
        outside = before >= torch.tensor([p.top_p for p in params], device=device)[:, None]
        outside[:, 0] = False
        probabilities.masked_fill_(outside, 0.0)
    if any(p.min_p > 0.0 for p in params):
        least = torch.tensor([p.min_p for p in params], device=device)[:, None] * probabilities.amax(-1, keepdim=True)
        probabilities *= probabilities >= least
    # By the inverse of the cumulated probabilities: one number for each row instead of one for each token.
    cumulated = probabilities.cumsum(dim=-1)
    at = torch.rand(len(params), 1, dtype=torch.float64, device=device) * cumulated[:, -1:]
    place = torch.searchsorted(cumulated, at, right=True).clamp_(max=scores.shape[-1] - 1)
    return (place if ids is None else ids.gather(-1, place))[:, 0]


def _as_generate(scores: Tensor, p: SamplingParams) -> Tensor:
    """The filters of transformers' `generate`, in its order and with its treatment of equals: [1, V] to [1, V]."""
    scores = scores / p.temperature
    if 0 < p.top_k < scores.shape[-1]:
        scores = scores.masked_fill(scores < scores.topk(p.top_k).values[:, -1:], -math.inf)
    if p.top_p < 1.0:
        ordered, ids = scores.sort(descending=False)
        outside = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p.top_p
        outside[:, -1] = False
        scores = scores.masked_fill(outside.scatter(1, ids, outside), -math.inf)
    if p.min_p > 0.0:
        probabilities = scores.softmax(dim=-1)
        scores = scores.masked_fill(probabilities < p.min_p * probabilities.amax(), -math.inf)
    if p.typical_p < 1.0:
        information = -scores.log_softmax(dim=-1)
        entropy = (information * information.neg().exp()).nansum(dim=-1, keepdim=True)
        ordered, ids = (information - entropy).abs().sort(descending=False)
        enough = (scores.gather(-1, ids).softmax(dim=-1).cumsum(dim=-1) < p.typical_p).sum(dim=1)
        outside = ordered > ordered.gather(1, enough.clamp_(max=scores.shape[-1] - 1)[:, None])
        outside[:, 0] = False
        scores = scores.masked_fill(outside.scatter(1, ids, outside), -math.inf)
    if p.epsilon_cutoff > 0.0:
        scores = _cut(scores, scores.softmax(dim=-1), p.epsilon_cutoff)
    if p.eta_cutoff > 0.0:
        probabilities = scores.softmax(dim=-1)
        entropy = torch.special.entr(probabilities).sum().item()
        scores = _cut(scores, probabilities, min(p.eta_cutoff, math.sqrt(p.eta_cutoff) * math.exp(-entropy)))
    return scores


def _cut(scores: Tensor, probabilities: Tensor, least: float) -> Tensor:
    return scores.masked_fill((probabilities < least) & (scores < scores.max()), -math.inf)

"""One step of generation: running answers get a token each, waiting prompts are computed in chunks, all in one pass."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from batching.errors import EngineFailed
from batching.generation import Joining, StepOutput
from handlers.chat.budget import PrefillBudget, allot
from handlers.chat.constraints import ConstraintError, Grammar
from handlers.chat.kv_cache import KVCache
from handlers.chat.packed import Chunk, DecodeGroup, Overlay, PackedBatch, PackedModel, padding_mask
from handlers.chat.prefix_cache import PrefixCache
from handlers.chat.sampling import Choice, History, choice, sample
from handlers.chat.types import Sampling
from handlers.devices import synchronize


@dataclass(frozen=True, slots=True, eq=False)
class PromptImages:
    """The images of a prompt.

    at: the places in `token_ids` that stand for images, ascending. vectors: computes what stands there instead of the
        tokens' own embeddings, [places, hidden_size]; called in the model's thread, again if the row is preempted.
    names: `token_ids` with what tells one image from another at those places, for the prefix cache.
    positions: [axes, tokens] for models whose positions have several; None where a token's place is its position.
    """

    at: Sequence[int]
    vectors: Callable[[], torch.Tensor]
    names: Sequence[int]
    positions: torch.Tensor | None = None

    @property
    def shift(self) -> int:
        """Of the positions that come after the prompt."""
        return 0 if self.positions is None else int(self.positions.max()) + 1 - self.positions.shape[1]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is generated from. Requests whose `token_ids` are the same object share one computation of it.

    max_tokens: how many may be generated at most. prompt_logprobs: None, or how many of the likeliest tokens are wanted
    at each place of the prompt itself.
    """

    token_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling
    grammar: Grammar | None = None
    cache_salt: str = ""
    prompt_logprobs: int | None = None
    images: PromptImages | None = None


@dataclass(frozen=True, slots=True)
class Generated:
    """A token of the answer. With the first one: how much of the prompt was cached, and the prompt's own tokens."""

    choice: Choice
    cached_tokens: int = 0
    prompt: Sequence[Choice] = ()


@dataclass(slots=True)
class _Row:
    """A request. length: tokens in the cache, of which the last one generated is not yet one.

    shift: how far a generated token's position is from its place.
    """

    id: int
    prompt: Prompt
    history: History
    length: int = 0
    shift: int = 0

    @property
    def token_ids(self) -> list[int]:
        return [*self.prompt.token_ids, *self.history.generated]

    @property
    def names(self) -> list[int]:
        """The same for the prefix cache, where images have names of their own."""
        images = self.prompt.images
        return self.token_ids if images is None else [*images.names, *self.history.generated]


@dataclass(slots=True)
class _Prefill:
    """Tokens that are being computed, and the rows that wait for them: several, if they share the prompt.

    names: as those of the row. states: [2, layers, heads, tokens, head_dim]. done: tokens computed. cached: how many
    of them were at hand, as a fresh row is to be told; a preempted one was told before. vectors: of the images, once
    they are computed.
    """

    rows: list[_Row]
    token_ids: list[int]
    names: list[int]
    states: torch.Tensor
    cached: int
    done: int
    vectors: torch.Tensor | None = None
    logprobs: list[Choice] = field(default_factory=list)

    @property
    def remaining(self) -> int:
        return len(self.token_ids) - self.done

    @property
    def nbytes(self) -> int:
        return self.states.nbytes + (0 if self.vectors is None else self.vectors.nbytes)

    @property
    def images(self) -> PromptImages | None:
        return self.rows[0].prompt.images

    @property
    def lacks_vectors(self) -> bool:
        """What comes from the prefix cache needs none."""
        return self.vectors is None and self.images is not None and self.images.at[-1] >= self.done

    @property
    def axes(self) -> torch.Tensor | None:
        """The prompt's own positions, [axes, tokens], where they are not just its places."""
        return None if self.images is None else self.images.positions

    def positions(self, tokens: int, device: torch.device) -> torch.Tensor:
        """Of the next tokens: [tokens] or [axes, tokens]."""
        places = torch.arange(self.done, self.done + tokens, device=device)
        if self.axes is None:
            return places
        known = self.axes[:, self.done : self.done + tokens]
        after = places[known.shape[1] :] + self.rows[0].shift
        return torch.cat([known.to(device), after.expand(len(known), -1)], dim=1)

    def overlay(self, stop: int, start: int) -> tuple[list[int], torch.Tensor] | None:
        """The images' vectors among the tokens from `done` to `stop`, and their places in a step that has them from
        `start` on."""
        if self.vectors is None or self.images is None:
            return None
        first, last = bisect_left(self.images.at, self.done), bisect_left(self.images.at, stop)
        return [start + at - self.done for at in self.images.at[first:last]], self.vectors[first:last]

    @property
    def wants_all_logits(self) -> bool:
        """A preempted row has told about its prompt before."""
        return self.rows[0].prompt.prompt_logprobs is not None and not self.rows[0].history.generated


@dataclass(frozen=True, slots=True)
class _Run:
    """A chunk of a prefill within a step. logits: how many of the step's logits are its own."""

    prefill: _Prefill
    tokens: int
    logits: int


class StepwiseEngine:
    """Keeps the rows and their caches; lives in the worker thread. See batching.generation.StepEngine.

    prefix_cache_bytes: memory for prompts that may come again; 0 switches that off. clock: seconds.
    """

    def __init__(
        self,
        model: PackedModel,
        eos_token_ids: Sequence[int],
        *,
        prefix_cache_bytes: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._model = model
        self._eos = frozenset(eos_token_ids)
        self._clock = clock
        self._budget = PrefillBudget()
        self._prefixes = PrefixCache(prefix_cache_bytes)
        self.reset()

    @property
    def cache_bytes(self) -> int:
        """Memory of the running rows."""
        return self._cache.bytes + sum(prefill.nbytes for prefill in self._prefills)

    def reset(self) -> None:
        """Drop every row and its cache, and what was kept for later."""
        self._rows: dict[int, _Row] = {}
        self._prefills: list[_Prefill] = []
        self._cache = KVCache(self._model.kv_shape)
        self._prefixes.clear()

    @torch.inference_mode()
    def step(
        self, joining: Sequence[Joining[Prompt, Generated]], leaving: Sequence[int]
    ) -> Sequence[StepOutput[Generated]]:
        """A token for every row whose prompt is computed; a row whose prompt is not gets nothing yet."""
        for id in leaving:
            self._leave(id)
        refused = [output for entry in joining if (output := self._join(entry)) is not None]
        if not self._rows and not self._prefills:
            return refused
        self._see()
        started = self._clock()
        decoding = list(self._decoding())
        runs = self._runs(len(decoding))
        logits = self._model.forward(self._pack(decoding, runs))
        outputs = self._outputs(decoding, runs, logits)
        synchronize(self._model.device)  # nothing has, if no prompt came to its end
        self._budget.record(len(decoding), sum(run.tokens for run in runs), self._clock() - started)
        return refused + outputs

    # Rows

    def _join(self, entry: Joining[Prompt, Generated]) -> StepOutput[Generated] | None:
        """Its error, if its grammar cannot even begin, or not go on where it was."""
        try:
            row = self._new_row(entry)
        except ConstraintError as error:
            return StepOutput(entry.id, error=error)
        for prefill in self._prefills:
            first = prefill.rows[0]
            if first.prompt.token_ids is row.prompt.token_ids and not (
                first.history.generated or row.history.generated
            ):
                prefill.rows.append(row)
                return None
        self._prefills.append(self._new_prefill(row))
        return None

    def _new_row(self, entry: Joining[Prompt, Generated]) -> _Row:
        prompt = entry.prompt
        constraint = None if prompt.grammar is None else prompt.grammar.start()
        history = History(prompt.sampling, prompt.token_ids, self._eos, constraint)
        for generated in entry.generated:  # it was preempted, and goes on where it was
            history.add(generated.choice.token)
        return _Row(entry.id, prompt, history, shift=prompt.images.shift if prompt.images else 0)

    def _new_prefill(self, row: _Row) -> _Prefill:
        token_ids = row.token_ids
        states = self._model.kv_shape.empty(1, len(token_ids))[:, :, 0]
        prefill = _Prefill([row], token_ids, row.names, states, cached=0, done=0)
        blocks = [] if prefill.wants_all_logits else self._prefixes.match(prefill.names, row.prompt.cache_salt)
        for block in blocks:
            states[:, :, :, prefill.done : prefill.done + block.shape[3]] = block
            prefill.done += block.shape[3]
        prefill.cached = 0 if row.history.generated else prefill.done
        return prefill

    def _leave(self, id: int) -> None:
        """Forget a row that is not wanted any more; what was computed for it may be of use to the next one."""
        for prefill in self._prefills:
            prefill.rows = [row for row in prefill.rows if row.id != id]
        self._prefills = [prefill for prefill in self._prefills if prefill.rows]
        if (row := self._rows.get(id)) is not None:
            self._keep_prefix(row)
            self._drop(id)

    def _drop(self, id: int) -> None:
        self._cache.remove(id)
        self._rows.pop(id, None)

    def _keep_prefix(self, row: _Row) -> None:
        states = self._cache.states(row.id, row.length)
        self._prefixes.insert(row.names[: row.length], row.prompt.cache_salt, states)

    # A step

    def _see(self) -> None:
        """Compute the images of at most one prompt a step, so that running answers wait for no more than that."""
        prefill = next((prefill for prefill in self._prefills if prefill.lacks_vectors), None)
        if prefill is not None and prefill.images is not None:
            prefill.vectors = prefill.images.vectors()

    def _decoding(self) -> Iterator[_Row]:
        """The rows that generate, in the order of the buckets, each with room for one more token."""
        for row in self._rows.values():
            self._cache.reserve(row.id, row.length)
        for bucket in self._cache:
            for id in bucket.owners:
                yield self._rows[id]

    def _runs(self, decoding: int) -> list[_Run]:
        budget = self._budget.tokens(decoding)
        ready = [prefill for prefill in self._prefills if not prefill.lacks_vectors]
        shares = allot([prefill.remaining for prefill in ready], budget)
        return [_run(prefill, share) for prefill, share in zip(ready, shares, strict=True) if share]

    def _pack(self, decoding: Sequence[_Row], runs: Sequence[_Run]) -> PackedBatch:
        token_ids = [row.history.generated[-1] for row in decoding]
        places = [row.length for row in decoding]
        logits_at = list(range(len(decoding)))
        chunks, overlays = [], []
        for run in runs:
            prefill, start = run.prefill, len(token_ids)
            stop = prefill.done + run.tokens
            overlays.append(prefill.overlay(stop, start))
            token_ids += prefill.token_ids[prefill.done : stop]
            places += range(prefill.done, stop)
            chunks.append(Chunk(prefill.states, start, len(token_ids), prefill.done))
            logits_at += range(len(token_ids) - run.logits, len(token_ids))
        # One copy to the device: each waits for what the device computes.
        together = torch.tensor([*token_ids, *places, *logits_at], device=self._model.device)
        tokens, in_row, wanted = torch.split(together, [len(token_ids), len(places), len(logits_at)])
        positions = self._positions(in_row, decoding, runs)
        overlay = self._overlay([overlay for overlay in overlays if overlay and overlay[0]])
        return PackedBatch(tokens, positions, wanted, self._groups(in_row), chunks, overlay)

    def _positions(self, places: torch.Tensor, decoding: Sequence[_Row], runs: Sequence[_Run]) -> torch.Tensor:
        """[tokens], or [axes, tokens] if a prompt's are: one position on all axes is what the others mean.

        places: of the step's tokens in their rows.
        """
        shifts = [row.shift for row in decoding]
        axes = [len(run.prefill.axes) for run in runs if run.prefill.axes is not None]
        if not any(shifts) and not axes:
            return places
        parts = [places[: len(decoding)] + torch.tensor(shifts, dtype=torch.long, device=places.device)]
        parts += [run.prefill.positions(run.tokens, places.device) for run in runs]
        if not axes:
            return torch.cat(parts)
        return torch.cat([part.expand(axes[0], -1) for part in parts], dim=1)

    def _overlay(self, overlays: Sequence[tuple[list[int], torch.Tensor]]) -> Overlay | None:
        if not overlays:
            return None
        at = [place for places, _ in overlays for place in places]
        return Overlay(torch.tensor(at, device=self._model.device), torch.cat([vectors for _, vectors in overlays]))

    def _groups(self, places: torch.Tensor) -> list[DecodeGroup]:
        """A row's next token has the place that is its length."""
        groups = []
        start = 0
        for bucket in self._cache:
            lengths = places[start : start + len(bucket)]
            known = [self._rows[id].length for id in bucket.owners]
            columns = max(known) + 1
            mask = None if min(known) + 1 == columns else padding_mask(lengths, columns, bucket.slab.dtype)
            slots = torch.arange(len(bucket), device=self._model.device)
            groups.append(DecodeGroup(bucket, start, lengths, columns, slots, mask))
            start += len(bucket)
        return groups

    def _outputs(
        self, decoding: Sequence[_Row], runs: Sequence[_Run], logits: torch.Tensor
    ) -> list[StepOutput[Generated]]:
        for row in decoding:
            row.length += 1
        rows, wanted, firsts = list(decoding), list(range(len(decoding))), {}
        at = len(decoding)
        for run in runs:
            self._advance(run, logits[at : at + run.logits])
            at += run.logits
            if run.prefill.remaining:
                continue
            self._prefills.remove(run.prefill)
            for row in run.prefill.rows:
                self._start(row, run.prefill)
                rows.append(row)
                wanted.append(at - 1)
                firsts[row.id] = run.prefill
        if not rows:
            return []
        chosen_from = logits if wanted == list(range(len(logits))) else logits[wanted]
        choices = sample(chosen_from, [row.history for row in rows])
        return [self._take(row, chosen, firsts.get(row.id)) for row, chosen in zip(rows, choices, strict=True)]

    def _advance(self, run: _Run, logits: torch.Tensor) -> None:
        prefill = run.prefill
        prefill.done += run.tokens
        if prefill.wants_all_logits:
            if not prefill.logprobs:
                prefill.logprobs.append(Choice(prefill.token_ids[0]))  # nothing came before it
            following = prefill.token_ids[prefill.done - run.tokens + 1 : prefill.done + 1]
            wanted = prefill.rows[0].prompt.prompt_logprobs
            prefill.logprobs += [choice(logits[i].float(), token, wanted) for i, token in enumerate(following)]

    def _start(self, row: _Row, prefill: _Prefill) -> None:
        row.length = len(prefill.token_ids)
        self._rows[row.id] = row
        self._cache.add(row.id, prefill.states)

    def _take(self, row: _Row, chosen: Choice | Exception, first: _Prefill | None) -> StepOutput[Generated]:
        try:
            if isinstance(chosen, Exception):
                raise chosen
            row.history.add(chosen.token)
        except (EngineFailed, ConstraintError) as error:
            self._drop(row.id)
            return StepOutput(row.id, error=error)
        if first is None:
            generated = Generated(chosen)
        else:
            self._prefixes.insert(first.names, row.prompt.cache_salt, first.states)
            generated = Generated(chosen, first.cached, tuple(first.logprobs))
        reason = self._finish_reason(row)
        if reason is not None:
            self._keep_prefix(row)
            self._drop(row.id)
        return StepOutput(row.id, generated, reason)

    def _finish_reason(self, row: _Row) -> str | None:
        sampling, token = row.prompt.sampling, row.history.generated[-1]
        ends = token in self._eos and not sampling.ignore_eos
        if ends or token in sampling.stop_token_ids or row.history.is_complete:
            return "stop"
        return "length" if len(row.history.generated) >= row.prompt.max_tokens else None


def _run(prefill: _Prefill, tokens: int) -> _Run:
    if prefill.wants_all_logits:
        return _Run(prefill, tokens, tokens)
    return _Run(prefill, tokens, 1 if tokens == prefill.remaining else 0)

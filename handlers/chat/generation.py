"""All answers to one request, as they come."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from batching.stats import Outcome
from batching.stream import StreamGroup
from handlers.chat.answer import Answer
from handlers.chat.engine import Generated, Prompt
from handlers.chat.types import Delta


class ChatGeneration:
    """See handlers.base.Generation."""

    def __init__(
        self,
        streams: StreamGroup[Prompt, Generated],
        prompts: Sequence[Prompt],
        answers: Sequence[Answer],
        *,
        on_cached: Callable[[int], None] = lambda tokens: None,
    ) -> None:
        """prompts: those of the request, each of which has as many of the answers as the others.

        on_cached: called for each prompt with how many of its tokens were in the prefix cache.
        """
        self.prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        self.cached_tokens = 0
        self._streams = streams
        self._answers = answers
        self._on_cached = on_cached
        self._answers_a_prompt = len(answers) // len(prompts)

    @property
    def reasoning_tokens(self) -> int:
        return sum(answer.reasoning_tokens for answer in self._answers)

    async def __aenter__(self) -> "ChatGeneration":
        await self._streams.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._streams.__aexit__(*exc_info)

    async def __aiter__(self) -> AsyncGenerator[Delta, None]:
        """Every answer's deltas, in turns. Raises what a job ended with."""
        async with aclosing(self._streams.read()) as pieces:
            async for i, tokens in pieces:
                answer, stream = self._answers[i], self._streams.streams[i]
                if not tokens:
                    assert stream.finish_reason is not None, "a stream without news has ended"
                    yield answer.end(stream.finish_reason)
                    continue
                self._count_cached(i, tokens)
                delta = answer.feed(tokens)
                if delta.finish_reason is not None:
                    stream.close(Outcome.COMPLETED)
                yield delta

    def _count_cached(self, index: int, tokens: Sequence[Generated]) -> None:
        """Only the first answer to each prompt says how much of it was cached: its others shared the computation."""
        if index % self._answers_a_prompt == 0:
            self.cached_tokens += tokens[0].cached_tokens
            self._on_cached(tokens[0].cached_tokens)


class BestOf:
    """A generation of which only the likeliest answers are given, all at the end. It needs their log-probabilities."""

    def __init__(self, generation: ChatGeneration, groups: Sequence[Sequence[int]], n: int) -> None:
        """groups: the answers to each prompt, of which the `n` likeliest are given."""
        self._generation = generation
        self._groups = groups
        self._n = n

    @property
    def prompt_tokens(self) -> int:
        return self._generation.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        return self._generation.cached_tokens

    @property
    def reasoning_tokens(self) -> int:
        return self._generation.reasoning_tokens

    async def __aenter__(self) -> "BestOf":
        await self._generation.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._generation.__aexit__(*exc_info)

    async def __aiter__(self) -> AsyncGenerator[Delta, None]:
        deltas: dict[int, list[Delta]] = {i: [] for group in self._groups for i in group}
        async for delta in self._generation:
            deltas[delta.index].append(delta)
        index = 0
        for group in self._groups:
            for i in sorted(group, key=lambda i: -_mean_logprob(deltas[i]))[: self._n]:
                for delta in deltas[i]:
                    yield replace(delta, index=index)
                index += 1


def _mean_logprob(deltas: Sequence[Delta]) -> float:
    """Per token, as OpenAI describes `best_of`."""
    known = [token.logprob for delta in deltas for token in delta.logprobs if token.logprob is not None]
    return sum(known) / max(1, len(known))

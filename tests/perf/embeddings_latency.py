"""How long one text waits while a request of 2,048 texts is computed, and that request's own rate.

python -m tests.perf.embeddings_latency --url http://127.0.0.1:8000/v1 --model text-embedding-3-small
"""

import argparse
import random
import statistics
import threading
import time

import httpx2

WORDS = "time year people way day man thing woman life child world school state family student group country".split()
MANY = 2048


def text_of(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.choice([8, 16, 32, 64, 128, 240])))


def latencies(client: httpx2.Client, model: str, rng: random.Random, until: threading.Event, most: int) -> list[float]:
    """Seconds of requests of one short text each, one after the other."""
    seconds: list[float] = []
    while not until.is_set() and len(seconds) < most:
        started = time.perf_counter()
        reply = client.post("/embeddings", json={"model": model, "input": " ".join(rng.choices(WORDS, k=10))})
        reply.raise_for_status()
        seconds.append(time.perf_counter() - started)
    return seconds


def report(name: str, seconds: list[float]) -> float:
    p99 = statistics.quantiles(seconds, n=100)[98]
    print(f"{name:<20} n={len(seconds)} p50 {statistics.median(seconds) * 1e3:.1f} ms  p99 {p99 * 1e3:.1f} ms")  # noqa: T201
    return p99


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of a running gateway, ending in /v1")
    parser.add_argument(
        "--model", default="text-embedding-3-small", help="an embeddings model (text-embedding-3-small)"
    )
    parser.add_argument("--requests", type=int, default=200, help="requests of one text while all is calm (200)")
    options = parser.parse_args()
    rng, ended = random.Random(), threading.Event()
    with httpx2.Client(base_url=options.url, timeout=600) as client:
        calm = report("calm", latencies(client, options.model, rng, ended, options.requests))
        texts = [text_of(rng) for _ in range(MANY)]
        started = time.perf_counter()

        def ask() -> None:
            client.post("/embeddings", json={"model": options.model, "input": texts}).raise_for_status()
            ended.set()

        asking = threading.Thread(target=ask)
        asking.start()
        busy = report("beside 2,048 texts", latencies(client, options.model, rng, ended, 1_000_000))
        asking.join()
    rate = MANY / (time.perf_counter() - started)
    print(f"p99 {busy / calm:.1f} times the calm one; {rate:.1f} texts/s for the large request")  # noqa: T201


if __name__ == "__main__":
    main()

"""How long a full queue takes to say no, on the starter models.

    python -m tests.perf.refusal --url http://127.0.0.1:8000/v1

Fills the chat queue of a running gateway, then times the requests that are refused, on a connection of their own.
"""

import argparse
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2

BODY = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Count to a thousand."}], "max_tokens": 400}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="the gateway's base URL")
    parser.add_argument("--fill", type=int, default=120, help="clients that fill the batch and the queue (120)")
    parser.add_argument("--refusals", type=int, default=200, help="requests that are timed (200)")
    options = parser.parse_args()
    url = f"{options.url}/chat/completions"
    done = threading.Event()
    with ThreadPoolExecutor(options.fill) as pool, httpx2.Client() as client:
        for _ in range(options.fill):
            pool.submit(_hold, url, done)
        seconds: list[float] = []
        while len(seconds) < options.refusals:
            started = time.perf_counter()
            with suppress(httpx2.TimeoutException):  # admitted: a place had just become free, and is left again
                reply = client.post(url, json=BODY, timeout=0.25)
                if reply.status_code == 503:
                    seconds.append(time.perf_counter() - started)
                    retry_after = reply.headers["retry-after"]
        done.set()
    seconds.sort()
    print(  # noqa: T201 - the figures are this script's output
        f"{len(seconds)} refusals: p50 {statistics.median(seconds) * 1e3:.1f} ms, "
        f"p99 {seconds[int(len(seconds) * 0.99)] * 1e3:.1f} ms, Retry-After {retry_after} s"
    )


def _hold(url: str, done: threading.Event) -> None:
    """One client that always has a chat running or waiting, until it is told to stop."""
    while not done.is_set():
        with suppress(httpx2.TimeoutException):
            reply = httpx2.post(url, json=BODY, timeout=20)
            if reply.status_code == 503:
                done.wait(1)


if __name__ == "__main__":
    main()

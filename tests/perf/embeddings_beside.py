"""sentence-transformers in process beside a running gateway: texts a second, and how like their vectors are.

    python tests/perf/embeddings_beside.py MODEL_FOLDER --url http://127.0.0.1:8000/v1 --model NAME

Runs in an environment that has sentence-transformers, which the gateway's has not. Texts are of 5 to 15 words (short)
or of 8 to 240 (mixed), as those of embed_load.py.
"""

import argparse
import json
import random
import time
import urllib.request
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother"
).split()
LENGTHS = {"short": range(5, 16), "mixed": [8, 16, 32, 64, 128, 240]}
INPUTS_A_REQUEST = 64


def texts_of(kind: str, count: int) -> list[str]:
    rng = random.Random(1)
    return [" ".join(rng.choices(WORDS, k=rng.choice(LENGTHS[kind]))) for _ in range(count)]


def served(url: str, model: str, texts: list[str]) -> NDArray[np.float32]:
    """[texts, dimensions], from the gateway."""
    rows: list[list[float]] = []
    for start in range(0, len(texts), INPUTS_A_REQUEST):
        body = json.dumps(
            {"model": model, "input": texts[start : start + INPUTS_A_REQUEST], "encoding_format": "float"}
        )
        request = urllib.request.Request(f"{url}/embeddings", body.encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=600) as reply:
            rows += [entry["embedding"] for entry in json.load(reply)["data"]]
    return np.array(rows, np.float32)


def encode(model: Any, texts: list[str]) -> tuple[NDArray[np.float32], float]:
    """Vectors and texts a second."""
    started = time.perf_counter()
    vectors = model.encode(texts, batch_size=32, convert_to_tensor=True).float().numpy()
    return vectors, len(texts) / (time.perf_counter() - started)


def main() -> None:
    from sentence_transformers import SentenceTransformer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="the model that the gateway serves, in the layout of sentence-transformers")
    parser.add_argument("--url", help="of a running gateway, ending in /v1; without it only speed is measured")
    parser.add_argument("--model", default="text-embedding-3-small", help="its name there (text-embedding-3-small)")
    parser.add_argument("--count", type=int, default=256, help="texts of each kind (256)")
    options = parser.parse_args()
    models = {name: SentenceTransformer(options.folder, device="cpu") for name in ("float32", "bfloat16")}
    models["bfloat16"] = models["bfloat16"].to(torch.bfloat16)
    for kind in LENGTHS:
        texts = texts_of(kind, options.count)
        results = {name: encode(model, texts) for name, model in models.items()}
        for name, (_, rate) in results.items():
            print(f"{kind:<6} sentence-transformers {name:<9} {rate:7.1f} texts/s")  # noqa: T201
        if options.url:
            expected, ours = results["float32"][0], served(options.url, options.model, texts)
            norms = np.linalg.norm(expected, axis=1) * np.linalg.norm(ours, axis=1)
            cosines = (expected.astype(np.float64) * ours).sum(axis=1) / norms
            print(f"{kind:<6} cosine of the gateway's vectors to float32: {cosines.min():.7f} at least")  # noqa: T201


if __name__ == "__main__":
    main()

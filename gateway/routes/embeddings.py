"""POST /v1/embeddings."""

from base64 import b64encode
from typing import TYPE_CHECKING, Literal

import orjson
from anyio.lowlevel import checkpoint
from starlette.requests import Request
from starlette.responses import Response

from batching.errors import EngineFailed
from gateway.disconnect import until_disconnect
from gateway.routes.context import cache_salt, caller, screen_for
from gateway.schemas.embeddings import EmbeddingParams
from gateway.state import State
from handlers.embeddings.types import Embeddings
from handlers.spec import Task

if TYPE_CHECKING:
    from handlers.embeddings.dimensions import Vector

Format = Literal["float", "base64"]

FLOATS_PER_TURN = 32_768  # about 2 ms of writing numbers


async def create_embeddings(request: Request[State]) -> Response:
    screen = screen_for(request)
    params = EmbeddingParams.parse(await request.body(), screen)
    handler = request.state["registry"].resolve(params.model, Task.EMBEDDINGS)
    wanted = params.to_request(cache_salt(request, params.cache_salt))
    embeddings = await until_disconnect(request, handler.embed(wanted, caller(request)))
    for name in embeddings.ignored:
        screen.ignore(name)
    body = await encoded(embeddings, params.model, params.encoding_format)
    return Response(body, headers=screen.headers(), media_type="application/json")


async def encoded(embeddings: Embeddings, model: str, encoding_format: Format) -> bytes:
    """The reply's JSON. Raises EngineFailed for vectors that are not finite: JSON has no word for them."""
    import numpy as np  # not with the module: a gateway that only relays never needs it

    if not np.isfinite(embeddings.vectors).all():
        raise EngineFailed("the model returned vectors that are not finite")
    items = []
    turn = max(1, FLOATS_PER_TURN // embeddings.vectors.shape[1])
    for i, vector in enumerate(embeddings.vectors):
        items.append(_item(i, np.ascontiguousarray(vector), encoding_format))
        if i % turn == turn - 1:
            # orjson keeps the interpreter lock, so a thread would not let the loop run either.
            await checkpoint()
    usage = orjson.dumps({"prompt_tokens": embeddings.tokens, "total_tokens": embeddings.tokens})
    name = orjson.dumps(model)
    return b'{"object":"list","data":[%b],"model":%b,"usage":%b}' % (b",".join(items), name, usage)


def _item(index: int, vector: "Vector", encoding_format: Format) -> bytes:
    if encoding_format == "base64":
        embedding = b'"%b"' % b64encode(vector.astype("<f4", copy=False).tobytes())
    else:
        embedding = orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
    return b'{"object":"embedding","index":%d,"embedding":%b}' % (index, embedding)

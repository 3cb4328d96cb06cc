"""The Llama family over packed tokens: Llama, Mistral, Qwen2, Qwen3, SmolLM2 and what else has that shape.

Twice as fast as the general path on small models: query, key and value are one multiplication, gate and up are one, and
no time goes into modules. transformers' modelling code, which takes seconds to import, is not needed.
"""

from handlers.chat.llama.config import LlamaConfig
from handlers.chat.llama.model import LlamaModel

__all__ = ["LlamaConfig", "LlamaModel"]

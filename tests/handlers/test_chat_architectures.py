"""Models of transformers in packed batches: each as its own `generate` has it, or refused when it is loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from handlers.chat import budget
from handlers.chat.general import checked
from handlers.chat.loading import load
from handlers.errors import ModelLoadError
from handlers.spec import ModelSpec, Task
from tests.handlers.engines import Run, causal_model, engine_of, entry, fast_copy, generate, with_packed_attention
from tests.handlers.tiny import save_chat_model

WINDOW = 5
PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13], [20, 21, 22, 23, 24], [33]]
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": WINDOW,
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
}
SERVED = (
    "apertus arcee cohere cohere2 ernie4_5 exaone4 gemma gemma2 gemma3_text glm glm4 gpt2 gpt_neox granite helium "
    "internlm3 llama ministral mistral mixtral olmo olmo2 olmo3 olmoe opt persimmon phi phi3 qwen2 "
    "qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2"
)
REFUSED = {
    "gpt_oss": "s_aux",
    "nemotron": "do not hand their keyword arguments on",
    "diffllama": "their results in a batch",
    "doge": "their results in a batch",
    "bert": "their results in a batch",
    "minimax": "linear_attention",
    "recurrent_gemma": "more than keys and values",
    "llama4_text": "chunked_attention",
    "jetmoe": "",
    "deepseek_v3": "",
    "bloom": "built in",
    "mpt": "built in",
    "bart": "built in",
    "mamba": "built in",
}
LATENT = {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 16, "qk_nope_head_dim": 16, "v_head_dim": 8}


def config_of(model_type: str, **changes: Any) -> Any:
    known = AutoConfig.for_model(model_type)
    sizes = {name: size for name, size in SIZES.items() if name in known.to_dict() or hasattr(known, name)}
    if hasattr(known, "kv_lora_rank"):
        sizes = {**sizes, **LATENT}
        del sizes["head_dim"]
    if known.to_dict().get("layer_types"):
        sizes["layer_types"] = None  # is made anew for the number of layers
    return AutoConfig.for_model(model_type, **{**sizes, **changes})


@pytest.mark.parametrize("model_type", SERVED.split())
def test_a_model_answers_in_a_batch_as_alone(model_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "_MOST", 6)
    monkeypatch.setattr(budget, "_LEAST", 2)
    reference = causal_model(config_of(model_type))
    run = Run(engine_of(checked(with_packed_attention(reference))))
    run.until_done(*(entry(i, prompt, 10) for i, prompt in enumerate(PROMPTS)))
    assert run.tokens == {i: generate(reference, prompt, 10) for i, prompt in enumerate(PROMPTS)}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "qwen3"])
def test_the_faster_code_answers_in_a_batch_as_the_model_alone(
    model_type: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "_MOST", 6)
    monkeypatch.setattr(budget, "_LEAST", 2)
    reference = causal_model(config_of(model_type, tie_word_embeddings=tied))
    run = Run(engine_of(fast_copy(reference)))
    run.until_done(*(entry(i, prompt, 10) for i, prompt in enumerate(PROMPTS)))
    assert run.tokens == {i: generate(reference, prompt, 10) for i, prompt in enumerate(PROMPTS)}


@pytest.mark.parametrize(("model_type", "reason"), REFUSED.items(), ids=list(REFUSED))
def test_a_model_that_would_answer_otherwise_is_refused(model_type: str, reason: str) -> None:
    reference = causal_model(config_of(model_type))
    with pytest.raises(ModelLoadError, match=f"^models of type {model_type} cannot be served: .*{reason}"):
        checked(with_packed_attention(reference))


def test_a_window_that_attention_is_not_told_about_is_found_however_long_it_is() -> None:
    with pytest.raises(ModelLoadError, match="do not tell their attention about its sliding window"):
        checked(with_packed_attention(causal_model(config_of("phimoe", sliding_window=4096))))


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "qwen3_moe"])
def test_bfloat16_is_close_enough_not_to_be_refused(model_type: str) -> None:
    model: Any = with_packed_attention(causal_model(config_of(model_type)))
    checked(model.to(torch.bfloat16))


def test_a_model_that_is_refused_says_so_in_one_line_when_it_is_loaded(tmp_path: Path) -> None:
    save_chat_model(tmp_path)
    causal_model(config_of("diffllama")).save_pretrained(tmp_path)
    spec = ModelSpec("odd", Task.CHAT, "dir:x", dtype="float32")
    with pytest.raises(ModelLoadError, match="^model odd: models of type diffllama cannot be served: ") as failed:
        load(spec, tmp_path)
    assert "\n" not in str(failed.value)

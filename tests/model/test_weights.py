"""Model and Hugging Face folders. Oracle: transformers' Olmo2ForCausalLM, RECIPE A.6."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.config import OLMO_0424, ModelConfig
from model.files.weights import hf_key, load_hf, save_hf
from model.network.transformer import Transformer, apply_rope, rope_tables
from model.tokens.tokenizer import Tokenizer

CONFIG = ModelConfig(
    d_model=64, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, mlp_hidden=96, vocab_size=256, max_sequence_length=64
)


@dataclass
class Words:
    """A tokenizer as `save_hf` sees it."""

    ranks: int = 200
    vocab_size: int = 222
    eos_id: int = 201
    pad_id: int = 221

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


@pytest.fixture
def model() -> Transformer:
    made = Transformer(CONFIG, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # norms away from 1, larger matrices: a wrong place or order then shows
        for parameter in made.parameters():
            parameter.mul_(3 if parameter.dim() == 2 else 1)
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.mark.parity
@pytest.mark.parity
def test_olmo_0424_is_the_model_of_that_name_in_transformers() -> None:
    """Oracle: `OlmoForCausalLM`, with a clip that projected numbers meet; logits and every gradient."""
    from transformers import OlmoConfig, OlmoForCausalLM

    config = ModelConfig.model_validate(CONFIG.model_dump() | OLMO_0424 | {"qkv_clip": 0.1})
    ours = Transformer(config, seed=4)
    theirs = OlmoForCausalLM(
        OlmoConfig(
            vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.mlp_hidden,
            num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, num_key_value_heads=config.n_kv_heads,
            max_position_embeddings=config.max_sequence_length, clip_qkv=config.qkv_clip, pad_token_id=255, eos_token_id=254,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta}, tie_word_embeddings=False,
        )
    )  # fmt: skip
    theirs.load_state_dict({hf_key(name): value for name, value in ours.state_dict().items()})
    # Padding is no token of these: its row has no gradient there.
    ids = torch.arange(40).unsqueeze(0)
    answers = [ours(ids), theirs(ids).logits]
    torch.testing.assert_close(*answers, atol=2e-6, rtol=1e-5)
    for logits in answers:
        logits.logsumexp(-1).square().sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(hf_key(name)).grad, atol=2e-4, rtol=1e-3)
    unclipped = Transformer(config.model_copy(update={"qkv_clip": None}), seed=4)
    assert not torch.allclose(unclipped(ids), answers[0], atol=1e-4), "no number was clipped"


@pytest.mark.parametrize("shard", [10**9, 20_000])
def test_transformers_computes_the_same_logits(model: Transformer, tmp_path: Path, shard: int) -> None:
    from transformers import AutoModelForCausalLM

    save_hf(model, CONFIG, Words(), tmp_path, shard)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert type(theirs).__name__ == "Olmo2ForCausalLM"
    assert (theirs.config.eos_token_id, theirs.config.pad_token_id, theirs.config.bos_token_id) == (201, 221, None)
    ids = torch.randint(0, 256, (2, 50), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parity
def test_transformers_samples_no_row_that_pads_the_vocabulary(tmp_path: Path) -> None:
    """Also of a model that likes these rows: they are trained like any other, only never chosen."""
    from transformers import AutoModelForCausalLM

    tokenizer = Tokenizer(300)
    config = CONFIG.model_copy(update={"vocab_size": tokenizer.padded_vocab_size})
    model = Transformer(config, seed=7)
    with torch.no_grad():
        model.head.weight[tokenizer.vocab_size :] *= 100
    save_hf(model, config, tokenizer, tmp_path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    prompts = torch.randint(0, 300, (64, 4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(prompts).logits[:, -1].argmax(-1) >= tokenizer.vocab_size).any()
    for how in ({"do_sample": True, "temperature": 1.0, "top_k": 0}, {"do_sample": False}):
        torch.manual_seed(2)
        answers = theirs.generate(prompts, max_new_tokens=16, **how)[:, 4:]
        assert int(answers.max()) < tokenizer.vocab_size


@pytest.mark.parametrize("rows", [322, 384])
def test_only_rows_that_have_no_id_are_suppressed(tmp_path: Path, rows: int) -> None:
    config = CONFIG.model_copy(update={"vocab_size": rows})
    save_hf(Transformer(config, seed=7), config, Tokenizer(300), tmp_path)
    said = json.loads((tmp_path / "generation_config.json").read_text())
    assert said.get("suppress_tokens", []) == list(range(322, rows))


@pytest.mark.parity
def test_folder_written_by_transformers_loads(tmp_path: Path) -> None:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    theirs = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=256, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-6, pad_token_id=1,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        )
    ).eval()  # fmt: skip
    theirs.save_pretrained(tmp_path)
    ours, config = load_hf(tmp_path)
    assert config.n_kv_heads == 2
    ids = torch.arange(40).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("shard", [10**9, 20_000])
@pytest.mark.parametrize("variant", [{}, OLMO_0424])
def test_round_trip_is_exact(tmp_path: Path, shard: int, variant: dict) -> None:
    config = ModelConfig(**(CONFIG.model_dump() | variant))
    model = Transformer(config, seed=4)
    save_hf(model, config, Words(), tmp_path, shard)
    again, read = load_hf(tmp_path, ranks=200)
    assert read == config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert len(list(tmp_path.glob("*.safetensors"))) == (1 if shard == 10**9 else len(list(tmp_path.glob("model-*"))))


def test_variant_does_not_pass_for_olmo2(tmp_path: Path) -> None:
    config = ModelConfig(**(CONFIG.model_dump() | OLMO_0424))
    save_hf(Transformer(config), config, None, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["Olmo2VariantForCausalLM"]


def test_what_does_not_fit_is_refused_by_name(model: Transformer, tmp_path: Path) -> None:
    save_hf(model, CONFIG, Words(), tmp_path)
    with pytest.raises(ValueError, match="200 ranks, not 300"):
        load_hf(tmp_path, ranks=300)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"architectures": ["LlamaForCausalLM"]}))
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        load_hf(tmp_path)
    (tmp_path / "olmo2.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": 4}))
    with pytest.raises(ValueError, match=r"lacks tensors.*layers\.3\."):
        load_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(settings | {"vocab_size": 512}))
    with pytest.raises(ValueError, match=r"embed_tokens.*256.*512|lm_head.*256.*512"):
        load_hf(tmp_path)


def change(path: Path, **fields: object) -> None:
    """Other values in a JSON file; `...` takes a field out."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not ...}))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rope_theta": 10_000.0, "rope_parameters": None}, r"rope_theta is 10000\.0 and 500000\.0"),
        ({"rope_theta": 10_000.0}, r"rope_theta 10000\.0 and 500000\.0; it has to be there once"),
        ({"rms_norm_eps": 1e-2}, r"rms_norm_eps is 0\.01 and 1e-06"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4 and 2"),
        ({"head_dim": 32}, "head_dim is 32 and 16"),
        (
            {"max_position_embeddings": 128, "initializer_range": 1},
            "embeddings is 128 and 64, initializer_range is 1.0",
        ),
        ({"architectures": ["Olmo2VariantForCausalLM"]}, "architectures is Olmo2VariantForCausalLM and OLMo 2"),
        ({"tie_word_embeddings": True}, r"config\.json cannot be used: tie_word_embeddings: .*given: True"),
        ({"attention_bias": True, "hidden_act": "gelu"}, "hidden_act: .*gelu.*; attention_bias: "),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"config\.json cannot be used: rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, r"config\.json cannot be used: rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"rope_parameters\.rope_type: .*yarn"),
        ({"quantization_config": {"bits": 8}}, "quantization_config"),
        ({"hidden_size": ...}, r"config\.json cannot be used: hidden_size: Field required"),
        ({"hidden_size": "32"}, "hidden_size: .*valid integer .given: '32'"),
        ({"initializer_range": ...}, "initializer_range: Field required"),
        ({"rope_theta": ..., "rope_parameters": ...}, "rope_theta nowhere"),
    ],
)
def test_a_config_that_olmo2_json_contradicts_or_olmo2_cannot_be_is_refused(
    model: Transformer, tmp_path: Path, fields: dict[str, object], says: str
) -> None:
    save_hf(model, CONFIG, Words(), tmp_path)
    change(tmp_path / "config.json", **fields)
    with pytest.raises(ValueError, match=says):
        load_hf(tmp_path)


@pytest.mark.parity
def test_config_json_is_what_counts_where_transformers_reads_it_too(model: Transformer, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_hf(model, CONFIG, Words(), tmp_path)
    theta = {"rope_theta": 100.0, "rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}
    change(tmp_path / "config.json", **theta, rms_norm_eps=1e-2)
    (tmp_path / "olmo2.json").unlink()
    ours, config = load_hf(tmp_path)
    assert (config.rope_theta, config.norm_eps) == (100.0, 1e-2)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    ids = torch.randint(0, 256, (1, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=2e-5, rtol=1e-4)
        assert (ours(ids) - model(ids)).abs().max() > 1e-2


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def as_codes(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors | {"lm_head.weight": tensors["lm_head.weight"].to(torch.int8)}, path)


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("config.json", lambda path: path.write_text("[]"), "config.json cannot be used: .*object"),
        ("config.json", lambda path: path.write_text('{"hidden'), r"config\.json cannot be used: Invalid JSON"),
        ("config.json", lambda path: path.write_bytes(b"\xff"), r"config\.json cannot be used: "),
        ("olmo2.json", lambda path: path.write_text("{}"), r"olmo2\.json cannot be used: model: Field required"),
        ("model.safetensors.index.json", lambda path: path.write_text("{}"), r"index\.json cannot be used: weight_map"),
        (
            "model.safetensors.index.json",
            lambda path: path.write_text('{"weight_map": {"a": "../a.safetensors"}}'),
            "do not lie beside it",
        ),
        ("model.safetensors", cut, r"model\.safetensors is damaged or no safetensors file"),
        ("model.safetensors", lambda path: path.write_bytes(b"rubbish" * 99), r"model\.safetensors is damaged"),
        ("model.safetensors", as_codes, r"lm_head\.weight holds I8, not one of"),
    ],
)
def test_rubbish_is_refused_by_the_files_name(
    model: Transformer, tmp_path: Path, name: str, damage: Callable[[Path], object], says: str
) -> None:
    save_hf(model, CONFIG, Words(), tmp_path)
    damage(tmp_path / name)
    with pytest.raises(ValueError, match=says):
        load_hf(tmp_path)


def test_a_tensor_in_two_files_is_refused(model: Transformer, tmp_path: Path) -> None:
    save_hf(model, CONFIG, Words(), tmp_path, 20_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    save_file(load_file(files[0]) | load_file(files[1]), files[1])
    with pytest.raises(ValueError, match="both hold"):
        load_hf(tmp_path)


def test_saving_twice_gives_the_same_bytes(model: Transformer, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_hf(model, CONFIG, Words(), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_rope_depends_on_distance_only() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=generator)
    scores = []
    for offset in (0, 30):
        parts = [apply_rope(x, *rope_tables(torch.tensor([p + offset]), 16, 500_000.0)) for x, p in ((q, 7), (k, 2))]
        scores.append((parts[0] * parts[1]).sum())
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)


def test_causal(model: Transformer) -> None:
    ids = torch.randint(0, 256, (1, 20), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, 12] = (changed[0, 12] + 1) % 256
    with torch.no_grad():
        before, after = model(ids), model(changed)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_window_is_a_limit(model: Transformer) -> None:
    with pytest.raises(ValueError, match="65 tokens exceeds max_sequence_length 64"):
        model(torch.zeros(1, 65, dtype=torch.long))


@pytest.mark.parametrize("scaling", [None, {"rope_type": "default"}, {"type": "default"}, {}])
def test_rope_scaling_that_means_none_is_accepted(tmp_path, scaling):
    folder = tmp_path / "model"
    save_hf(Transformer(ROPE_TINY, seed=0), ROPE_TINY, None, folder)
    (folder / "olmo2.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_scaling": scaling}))
    assert load_hf(folder)[1].rope_theta == ROPE_TINY.rope_theta


def test_one_file_beside_an_index_of_others_is_ambiguous(tmp_path):
    folder = tmp_path / "model"
    save_hf(Transformer(ROPE_TINY, seed=0), ROPE_TINY, None, folder, max_shard_bytes=20_000)
    load_hf(folder)
    save_hf(Transformer(ROPE_TINY, seed=1), ROPE_TINY, None, tmp_path / "other")
    (folder / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"holds model\.safetensors beside an index that names model-00001"):
        load_hf(folder)


ROPE_TINY = ModelConfig(
    d_model=16, n_layers=1, n_heads=2, n_kv_heads=2, head_dim=8, mlp_hidden=32, vocab_size=128, max_sequence_length=32
)

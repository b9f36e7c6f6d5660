"""The logits are the same for every backend, cache, padding, chunk size and window."""

import json
import logging
import sys
import types

import pytest
import torch
from clean_process import run_clean
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    DynamicCache,
    StaticCache,
    Trainer,
    TrainingArguments,
)

from modeling_music_tx import MusicTxConfig, MusicTxForCausalLM, MusicTxModel
from modeling_music_tx import relative_attention as attention

IMPLEMENTATIONS = ["blocked_relative", "sdpa", "eager"]

# Weights this large make the relative term matter: at the default 0.02 it is numerically invisible, and a decode that
# forgets the cache's offset passes every comparison.
LOUD = {"initializer_range": 0.5}

# Single precision over three loud layers; a wrong offset is off by several units.
CLOSE = {"atol": 2e-3, "rtol": 1e-3}


def make_model(implementation="blocked_relative", seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {"vocab_size": 40, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
    config = MusicTxConfig(**{**sizes, "max_relative_distance": 12, **LOUD, **fields})
    model = MusicTxForCausalLM(config).eval()
    model.set_attn_implementation(implementation)
    return model


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """More than one block of queries at the lengths used here."""
    monkeypatch.setattr(attention, "BLOCK_BYTES", 1)
    monkeypatch.setattr(attention, "BLOCK_QUERIES", 32)


@pytest.fixture
def ids():
    return torch.randint(3, 40, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def left_padded(ids):
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return mask


def by_hand(model, ids):
    """The forward pass of one sequence written out with plain tensors, attention by a loop over pairs."""
    config, state = model.config, {k: v.double() for k, v in model.state_dict().items()}

    def normalise(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
        return (x - mean) / (variance + config.layer_norm_eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]

    hidden = state["model.embed_tokens.weight"][ids]  # [L, C]
    first_values = None
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}"
        x = normalise(hidden, f"{layer}.input_layernorm") @ state[f"{layer}.self_attn.qkv_proj.weight"].T
        query, key, value = x.view(len(ids), 3, config.num_attention_heads, config.head_dim).permute(1, 2, 0, 3)
        if config.value_residual and index:
            own, first = state[f"{layer}.self_attn.value_mix"]
            value = own * value + first * first_values
        first_values = value if index == 0 else first_values
        table = state[f"{layer}.self_attn.relative_embeddings"]
        rows = []
        for i in range(len(ids)):
            heads = []
            for h in range(config.num_attention_heads):
                first = 0 if config.sliding_window is None else max(0, i - config.sliding_window + 1)
                distances = torch.tensor([min(i - j, table.shape[1] - 1) for j in range(first, i + 1)])
                logits = (key[h, first : i + 1] + table[h, table.shape[1] - 1 - distances]) @ query[h, i]
                heads.append((logits / config.head_dim**0.5).softmax(0) @ value[h, first : i + 1])
            rows.append(torch.cat(heads))
        hidden = hidden + torch.stack(rows) @ state[f"{layer}.self_attn.o_proj.weight"].T
        x = normalise(hidden, f"{layer}.post_attention_layernorm")
        x = torch.nn.functional.gelu(x @ state[f"{layer}.mlp.up_proj.weight"].T + state[f"{layer}.mlp.up_proj.bias"])
        hidden = hidden + x @ state[f"{layer}.mlp.down_proj.weight"].T + state[f"{layer}.mlp.down_proj.bias"]
    return (normalise(hidden, "model.norm") @ state["model.embed_tokens.weight"].T).float()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "fields",
    [{}, {"sliding_window": 9}, {"head_dim": 20}, {"value_residual": True}],
    ids=["plain", "window", "head_dim", "value_residual"],
)
@torch.no_grad()
def test_logits_equal_a_forward_pass_written_by_hand(implementation, fields, ids):
    model = make_model(implementation, **fields)
    logits = model(ids).logits
    for row in range(2):
        torch.testing.assert_close(logits[row], by_hand(model, ids[row]), **CLOSE)


@torch.no_grad()
def test_the_relative_term_is_loud_enough_here_to_be_missed(ids):
    model = make_model()
    logits = model(ids).logits
    for layer in model.model.layers:
        layer.self_attn.relative_embeddings.copy_(layer.self_attn.relative_embeddings.roll(1, dims=1))
    assert (model(ids).logits - logits).abs().median() > 0.5


@pytest.mark.parametrize("fields", [{}, {"sliding_window": 9}, {"max_relative_distance": 0}])
def test_every_backend_has_the_same_gradients(fields, ids, left_padded):
    gradients = {}
    # The first real token is predicted from padding, which each backend fills in its own way.
    labels = ids.masked_fill(left_padded.cumsum(-1) <= 1, -100)
    for implementation in IMPLEMENTATIONS:
        model = make_model(implementation, **fields)
        model(ids, attention_mask=left_padded, labels=labels).loss.backward()
        gradients[implementation] = torch.cat([p.grad.flatten() for p in model.parameters()])
    for implementation in IMPLEMENTATIONS[1:]:
        difference = (gradients[implementation] - gradients["blocked_relative"]).norm()
        assert difference < 1e-4 * gradients["blocked_relative"].norm()


@torch.no_grad()
def test_flex_attention_equals_the_default_on_a_forward_pass(ids):
    expected = make_model()(ids).logits
    torch.testing.assert_close(make_model("flex_attention")(ids).logits, expected, **CLOSE)


def test_attention_that_takes_no_bias_is_refused():
    with pytest.raises((ValueError, ImportError)):
        make_model("flash_attention_2")


CHUNKS = {"token-by-token": [1] * 40, "prefill-then-decode": [31] + [1] * 9, "chunks": [10, 1, 7, 1, 21]}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(
    "fields", [{}, {"sliding_window": 9}, {"value_residual": True}], ids=["full", "window", "value_residual"]
)
@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS.keys())
@torch.no_grad()
def test_cached_logits_equal_uncached_ones(implementation, cache, fields, chunks, ids, left_padded):
    model = make_model(implementation, **fields)
    expected = model(ids, attention_mask=left_padded).logits
    past = DynamicCache(config=model.config) if cache == "dynamic" else StaticCache(model.config, max_cache_len=48)
    logits, seen = [], 0
    for length in chunks:
        part, seen = ids[:, seen : seen + length], seen + length
        output = model(part, attention_mask=left_padded[:, :seen], past_key_values=past, use_cache=True)
        logits.append(output.logits)
    real = left_padded.bool()
    torch.testing.assert_close(torch.cat(logits, dim=1)[real], expected[real], **CLOSE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 9], ids=["full", "window"])
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(implementation, window, ids, left_padded):
    model = make_model(implementation, sliding_window=window)
    alone = model(ids[:1, 7:]).logits
    torch.testing.assert_close(model(ids, attention_mask=left_padded).logits[:1, 7:], alone, **CLOSE)
    right = torch.cat([ids[:, 7:], torch.zeros(2, 7, dtype=torch.long)], dim=1)
    mask = torch.ones_like(right)
    mask[:, -7:] = 0
    torch.testing.assert_close(model(right, attention_mask=mask).logits[:1, :-7], alone, **CLOSE)


@torch.no_grad()
def test_shifted_positions_change_nothing(ids):
    model = make_model()
    shifted = model(ids, position_ids=torch.arange(40)[None] + 1000).logits
    torch.testing.assert_close(shifted, model(ids).logits)


@torch.no_grad()
def test_a_window_forgets_what_it_no_longer_sees(ids):
    """Three layers of a window of 9 reach back 3 · 8 tokens; what lies before them is as if it had never been."""
    model = make_model(sliding_window=9)
    torch.testing.assert_close(model(ids[:, 15:]).logits[:, -1], model(ids).logits[:, -1], **CLOSE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_a_mask_of_the_caller_s_own_takes_distances_from_position_ids(implementation, ids):
    """Two continuations of one prefix side by side in one row, as tree decoding lays them out."""
    model = make_model(implementation)
    prefix, first, second = ids[:1, :20], ids[:1, 20:26], ids[1:, 20:26]
    row = torch.cat([prefix, first, second], dim=1)
    visible = torch.ones(32, 32, dtype=torch.bool).tril()
    visible[26:, 20:26] = False
    mask = visible[None, None]
    if implementation == "eager":
        mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    positions = torch.cat([torch.arange(26), torch.arange(20, 26)])[None]
    logits = model(row, attention_mask=mask, position_ids=positions).logits
    expected = model(torch.cat([prefix, second], dim=1)).logits[:, 20:]
    torch.testing.assert_close(logits[:, 26:], expected, **CLOSE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_packed_sequences_do_not_see_each_other(implementation, ids):
    model = make_model(implementation)
    positions = torch.cat([torch.arange(15), torch.arange(25)])[None]
    packed = model(ids[:1], position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed[:, 15:], model(ids[:1, 15:]).logits, **CLOSE)


@pytest.fixture
def compile_whole():
    """Compile without a graph break, to operators but not to machine code, which is slow."""
    torch.compiler.reset()
    yield lambda function: torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.compiler.reset()


@pytest.mark.parametrize(
    "fields", [{}, {"sliding_window": 9}, {"value_residual": True}], ids=["plain", "window", "value_residual"]
)
def test_a_training_step_compiles_whole_and_has_the_same_gradients(fields, ids, left_padded, compile_whole):
    model = make_model(**fields).train()
    call = {"input_ids": ids, "labels": ids, "attention_mask": left_padded, "use_cache": False}
    expected = torch.autograd.grad(model(**call).loss, list(model.parameters()))
    gradients = torch.autograd.grad(compile_whole(model)(**call).loss, list(model.parameters()))
    torch.testing.assert_close(gradients, expected)


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_decode_step_with_a_static_cache_compiles_whole(batch, ids, compile_whole):
    model = make_model()
    expected = model(ids[:batch]).logits[:, 30:]
    cache = StaticCache(config=model.config, max_cache_len=45)
    model(ids[:batch, :30], past_key_values=cache)
    step = compile_whole(model.forward)
    logits = torch.cat([step(ids[:batch, i : i + 1], past_key_values=cache).logits for i in range(30, 40)], 1)
    torch.testing.assert_close(logits, expected, **CLOSE)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_generate_is_the_same_with_and_without_cache_for_left_padded_prompts(implementation, search, ids, left_padded):
    model = make_model(implementation)
    prompt, mask = ids[:, :20], left_padded[:, :20]
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": mask, "eos_token_id": None, **search}
    cached = model.generate(prompt, **settings)
    assert cached.shape == (2, 32)
    assert cached.tolist() == model.generate(prompt, use_cache=False, **settings).tolist()
    assert cached.tolist() == model.generate(prompt, cache_implementation="static", **settings).tolist()


def test_a_batch_of_prompts_generates_what_each_generates_alone(ids, left_padded):
    model = make_model()
    settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": None}
    batch = model.generate(ids[:, :20], attention_mask=left_padded[:, :20], **settings)
    alone = model.generate(ids[:1, 7:20], **settings)
    assert batch[0, 20:].tolist() == alone[0, 13:].tolist()


def test_generation_beyond_the_window_keeps_the_cache_at_constant_size(ids):
    model = make_model(sliding_window=9)
    output = model.generate(
        ids[:, :4], max_new_tokens=60, do_sample=False, eos_token_id=None, return_dict_in_generate=True
    )
    assert output.past_key_values.layers[0].keys.shape[2] <= 9
    # The last choice is that of a fresh run over the stretch that three layers of the window reach back.
    assert model(output.sequences[:, -26:-1]).logits[:, -1].argmax(-1).tolist() == output.sequences[:, -1].tolist()


def test_only_eager_attention_returns_its_weights_and_they_sum_to_one(ids):
    weights = make_model("eager")(ids, output_attentions=True).attentions
    assert len(weights) == 3
    assert weights[0].shape == (2, 4, 40, 40)
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 4, 40))


def test_without_the_relative_term_the_order_of_the_past_does_not_matter(ids):
    model = make_model("sdpa", max_relative_distance=0, num_hidden_layers=1)
    assert model.model.layers[0].self_attn.relative_embeddings is None
    shuffled = torch.cat([ids[:, torch.randperm(39)], ids[:, 39:]], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(model(shuffled).logits[:, -1], model(ids).logits[:, -1], **CLOSE)


@torch.no_grad()
def test_sinusoids_follow_the_cache(ids):
    model = make_model(position_embedding="sinusoidal", max_relative_distance=0)
    past = DynamicCache(config=model.config)
    expected = model(ids).logits
    assert not torch.allclose(model(ids.flip(1)).logits[:, -1], expected[:, -1])
    first = model(ids[:, :30], past_key_values=past, use_cache=True).logits
    rest = model(ids[:, 30:], past_key_values=past, use_cache=True).logits
    torch.testing.assert_close(torch.cat([first, rest], dim=1), expected, **CLOSE)


@pytest.mark.parametrize("value_residual", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient_with_dropout_on(use_reentrant, value_residual, ids):
    gradients = []
    for checkpointing in (False, True):
        model = make_model(attention_dropout=0.3, hidden_dropout=0.2, value_residual=value_residual).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.manual_seed(7)
        model(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients)


def test_initial_weights_have_the_spread_that_is_written_down():
    fields = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 8, "value_residual": True}
    model = make_model(initializer_range=0.02, **fields)
    layer = model.model.layers[0]
    assert layer.self_attn.qkv_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert layer.self_attn.relative_embeddings.std().item() == pytest.approx(0.02, rel=0.1)
    for residual in (layer.self_attn.o_proj, layer.mlp.down_proj):
        assert residual.weight.std().item() == pytest.approx(0.02 / 4, rel=0.05)
    assert layer.self_attn.value_mix is None  # the first layer has nothing to mix
    assert model.model.layers[1].self_attn.value_mix.tolist() == [0.5, 0.5]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_auto_classes_know_the_model():
    config = MusicTxConfig(vocab_size=40, hidden_size=48)
    assert type(AutoModel.from_config(config)) is MusicTxModel
    assert type(AutoModelForCausalLM.from_config(config)) is MusicTxForCausalLM


def test_a_saved_model_loads_from_a_folder_of_any_name_where_the_package_is_not_installed(tmp_path, ids):
    model, folder = make_model(), tmp_path / "it's a modèle + x (1)"
    model.save_pretrained(folder)
    script = """
import json, torch
from transformers import AutoModel, AutoModelForCausalLM
ids = torch.tensor(ids)
base = AutoModel.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
assert type(base).__name__ == "MusicTxModel"
torch.testing.assert_close(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
print(json.dumps(model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None).tolist()))
"""
    prompt = ids[:, :10]
    result = run_clean(script, tmp_path, folder=str(folder), ids=prompt.tolist())
    assert result.returncode == 0, result.stderr[-2000:]
    expected = model.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert json.loads(result.stdout.splitlines()[-1]) == expected.tolist()
    assert not [path.name for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


# What libraries around the model need


def small(**fields):
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_relative_distance": 16}
    return MusicTxForCausalLM(MusicTxConfig(vocab_size=40, intermediate_size=32, **shape | fields)).eval()


def test_every_linear_layer_is_of_the_type_that_quantizers_replace():
    linears = [module for module in small().modules() if isinstance(module, torch.nn.Linear)]
    assert len(linears) == 9
    assert {type(module) for module in linears} == {torch.nn.Linear}


@pytest.mark.parametrize("name", ["my_kernels/flash", "vllm", "paged|sdpa", "flash_attention_2"])
def test_attention_that_would_ignore_the_relative_term_is_refused(name):
    model = small()
    model.config._attn_implementation = name
    with pytest.raises(ValueError, match="takes no bias that depends on the query"):
        model(torch.tensor([[1, 2, 3]]))


def test_continuous_batching_is_refused_rather_than_answered_with_nothing():
    with pytest.raises(ValueError, match="paged attention"):
        small().generate_batch([[1, 2, 3]])


def test_a_forward_pass_runs_on_the_meta_device():
    with torch.device("meta"):
        model = small()
        ids = torch.ones(2, 12, dtype=torch.long)
        assert model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (2, 12, 40)


def test_tokens_can_be_classified_one_by_one():
    config = MusicTxConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_labels=5)
    outputs = AutoModelForTokenClassification.from_config(config)(
        torch.tensor([[1, 2, 3]]), labels=torch.tensor([[0, 4, 1]])
    )
    assert outputs.logits.shape == (1, 3, 5)
    outputs.loss.backward()


def test_trainer_shifts_the_labels_for_label_smoothing(tmp_path):
    model = small()
    ids = torch.randint(3, 40, (2, 12), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments(tmp_path, label_smoothing_factor=1e-6, report_to="none", use_cpu=True)
    trainer = Trainer(model, arguments)
    smoothed = trainer.compute_loss(model, {"input_ids": ids, "labels": ids})
    assert smoothed.item() == pytest.approx(model(ids, labels=ids).loss.item(), abs=1e-3)


def test_left_padding_takes_no_sinusoidal_positions():
    model = small(max_relative_distance=0, position_embedding="sinusoidal")
    ids = torch.tensor([[5, 6, 7, 8]])
    padded, mask = torch.tensor([[0, 0, 5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 2:], model(ids).logits)


@pytest.mark.parametrize("name", ["my model", "modèle", "a+b", "o'hara", "x (1)", "1st", "a-b.c"])
def test_operators_have_a_valid_namespace_in_a_folder_of_any_name(name):
    module = f"transformers_modules.{name}.relative_attention"
    assert attention.operator_namespace(module).isidentifier()
    assert attention.operator_namespace(module) != attention.operator_namespace(module.replace(name, "other"))
    assert attention.operator_namespace("a b") != attention.operator_namespace("a+b")


def test_a_request_for_attention_weights_names_the_implementation_that_has_none(caplog, monkeypatch):
    monkeypatch.setattr(attention.logger, "warning_once", attention.logger.warning)
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    small()(torch.tensor([[1, 2, 3]]), output_attentions=True)
    small().generate(torch.tensor([[1, 2, 3]]), output_attentions=True, max_new_tokens=2)
    assert '"blocked_relative" returns no attention weights; use "eager"' in caplog.text
    assert "sdpa" not in caplog.text


@pytest.mark.parametrize("window", [None, 8])
def test_classifier_free_guidance_weighs_a_prompt_against_another(window, ids):
    model, scale = make_model(sliding_window=window), 1.5
    given, negative = ids[:, :6], ids[:, 20:23]
    generated = model.generate(
        given,
        negative_prompt_ids=negative,
        guidance_scale=scale,
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=None,
    )[:, 6:]
    with torch.no_grad():
        for step in range(20):
            with_given, with_negative = (
                model(torch.cat([prompt, generated[:, :step]], dim=1)).logits[:, -1].log_softmax(-1)
                for prompt in (given, negative)
            )
            guided = with_negative + scale * (with_given - with_negative)
            assert (generated[:, step] == guided.argmax(-1)).all()


def test_generate_makes_music_without_being_given_a_length():
    prompt = torch.tensor([[1, 2, 3]])
    assert small().generate(prompt, eos_token_id=None).shape == (1, 3 + 1024)
    assert small(max_position_embeddings=50).generate(prompt, eos_token_id=None).shape == (1, 50)
    assert small().generate(prompt, max_length=10, eos_token_id=None).shape == (1, 10)
    assert small().generate(prompt, max_new_tokens=10, eos_token_id=None).shape == (1, 13)


@pytest.mark.parametrize("window", [None, 9], ids=["full", "window"])
def test_drafts_of_the_first_layer_do_not_change_what_is_generated(window):
    model, prompt = small(sliding_window=window, **LOUD), torch.tensor([[5, 6, 7, 8]])
    settings = {"max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    drafted = model.generate(prompt, assistant_early_exit=1, **settings)
    assert torch.equal(drafted, model.generate(prompt, **settings))


def test_lora_has_default_targets(monkeypatch):
    constants = types.SimpleNamespace(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING={})
    monkeypatch.setitem(sys.modules, "peft.utils.constants", constants)
    names = {name.split(".")[-1] for name, module in small().model.named_modules() if type(module) is torch.nn.Linear}
    assert set(constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING["music_tx"]) == names


def test_the_model_exports_for_onnx_with_gradients_enabled():
    """The ONNX exporter replaces attention by operators whose output has other strides than the traced one."""
    model, ids = small(), torch.randint(3, 40, (2, 12))
    program = torch.export.export(model, (ids,), {"use_cache": False}).run_decompositions()
    torch.testing.assert_close(program.module()(ids, use_cache=False).logits, model(ids).logits)


def test_an_exported_cache_holds_keys_and_values_alone():
    ids = torch.randint(3, 40, (2, 12))
    with torch.no_grad():
        cache = small()(ids, use_cache=True).past_key_values
    for layer in cache.layers:
        assert [name for name, value in vars(layer).items() if isinstance(value, torch.Tensor)] == ["keys", "values"]
        assert not [name for name, value in vars(layer).items() if hasattr(value, "tensor")]

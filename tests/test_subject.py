"""The contract of a Subject over 29 architectures: residuals, read-out, batches, padding, a module left as found."""

import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

import alignscope
import zoo as models
from alignscope import InputError, Subject
from alignscope.probes.capture import rows_at
from alignscope.probes.loading import load, wrap
from alignscope.probes.sequence_scores import TokenSequence, score_sequences

CLOSE = 1e-5
ROWS = ([7, 300, 41, 12, 260, 9, 88], [33, 5], [400, 21, 21, 76], [90, 264, 227, 73, 71, 90])
IGNORES_MASKS = ("rwkv",)  # left padding moves it: score right-padded, generate one by one


@pytest.fixture(scope="module")
def subjects(zoo) -> dict[str, Subject]:
    return {name: load(folder) for name, folder in zoo.items()}


@pytest.fixture
def subject(subjects, request) -> Subject:
    return subjects[request.param]


every = pytest.mark.parametrize("subject", list(models.CONFIGS), indirect=True)


def padded(rows, *, pad: int = 0, left: bool = False, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + extra
    ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row)
        mask[i, place] = 1
    return ids, mask


def real(logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The logits at real tokens, row after row."""
    return logits[mask.bool()]


def logits(subject: Subject, *arguments) -> torch.Tensor:
    with torch.no_grad():
        return subject.logits(*arguments)


def alone(subject: Subject) -> torch.Tensor:
    return torch.cat([logits(subject, *padded([row]))[0] for row in ROWS])


# ---- the numbers of the model, untouched


@every
def test_logits_are_those_of_transformers_on_the_bare_row(subject, zoo):
    plain = AutoModelForCausalLM.from_pretrained(zoo[subject.name.rsplit("/", 1)[-1]], dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch.cat([plain(input_ids=torch.tensor([row])).logits[0] for row in ROWS])
    assert (alone(subject) - expected).abs().max() <= CLOSE


@every
def test_residuals_are_what_the_blocks_pass_on(subject):
    """Entry 0 is the input of block 0, entry k+1 the output of block k; each is the next one's input."""
    ids, mask = padded(ROWS[:1])
    inputs, outputs = [], []
    handles = [
        block.register_forward_pre_hook(
            lambda module, args, kwargs: inputs.append((args or tuple(kwargs.values()))[0].clone()), with_kwargs=True
        )
        for block in subject.anatomy.blocks
    ]
    handles += [
        block.register_forward_hook(
            lambda module, args, out: outputs.append((out if isinstance(out, torch.Tensor) else out[0]).clone())
        )
        for block in subject.anatomy.blocks
    ]
    trace = subject.trace(ids, mask, reduce=lambda layer, h, mask: h.clone())
    for handle in handles:
        handle.remove()
    assert trace.layers == tuple(range(subject.n_layers + 1))
    assert torch.equal(trace[0], inputs[0])
    for layer in range(1, subject.n_layers + 1):
        assert torch.equal(trace[layer], outputs[layer - 1])
        if layer < subject.n_layers:
            assert torch.equal(trace[layer], inputs[layer])


@every
def test_readout_of_the_last_residual_is_the_logits(subject):
    ids, mask = padded(ROWS)
    last = subject.trace(ids, mask, reduce=lambda layer, h, mask: h, layers=[subject.n_layers])[subject.n_layers]
    expected = real(logits(subject, ids, mask), mask)
    with torch.no_grad():
        assert (real(subject.readout(last), mask) - expected).abs().max() <= 1e-6 * expected.abs().max()


@every
def test_the_simple_head_says_what_the_modules_say(subject):
    head = subject.head()
    h = 3 * torch.randn(5, subject.d_model, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        z = head.norm(h) @ head.weight.T + (0 if head.bias is None else head.bias)
        z = z * head.scale if head.softcap is None else head.softcap * torch.tanh(z / head.softcap)
        assert (z - subject.readout(h)).abs().max() <= CLOSE * z.abs().max()
    assert head.vocab == models.ENTRIES


# ---- what must not move them


@every
def test_batches_and_right_padding_move_nothing(subject):
    for options in ({}, {"extra": 9}, {"pad": 17, "extra": 3}, {"pad": -100}):
        ids, mask = padded(ROWS, **options)
        assert (real(logits(subject, ids, mask), mask) - alone(subject)).abs().max() <= CLOSE


@every
def test_left_padding_moves_nothing_but_a_model_that_ignores_masks(subject):
    ids, mask = padded(ROWS, left=True, extra=2)
    moved = (real(logits(subject, ids, mask), mask) - alone(subject)).abs().max()
    assert (moved > 1e-3) if subject.facts["model_type"] in IGNORES_MASKS else (moved <= CLOSE)


@every
def test_residuals_do_not_depend_on_the_batch(subject):
    ids, mask = padded(ROWS, extra=4)
    together = subject.trace(ids, mask, reduce=lambda layer, h, mask: h[mask.bool()])
    single = [subject.trace(*padded([row]), reduce=lambda layer, h, mask: h[0]) for row in ROWS]
    for layer in together.layers:
        expected = torch.cat([trace[layer] for trace in single])
        assert (together[layer] - expected).abs().max() <= CLOSE * max(1.0, float(expected.abs().max()))


@every
def test_logits_at_wanted_positions_are_those_of_all(subject):
    ids, mask = padded(ROWS)
    positions = torch.tensor([[6, 0], [1, 1], [3, 2], [5, 4]])
    whole, some = logits(subject, ids, mask), logits(subject, ids, mask, positions)
    assert some.shape == (4, 2, models.ENTRIES)
    assert (some - whole[torch.arange(4)[:, None], positions]).abs().max() <= CLOSE


# ---- trace


@pytest.fixture(scope="module")
def llama(subjects) -> Subject:
    return subjects["llama"]


def test_a_reducer_is_called_only_for_the_wanted_layers_and_holds_what_it_returns(llama):
    seen = []
    ids, mask = padded(ROWS)

    def reduce(layer, h, given):
        assert torch.equal(given, mask)
        assert not h.requires_grad
        seen.append(layer)
        return h.shape

    trace = llama.trace(ids, mask, reduce=reduce, layers=(4, 0, 2))
    assert seen == [0, 2, 4]
    assert trace.layers == (0, 2, 4)
    assert trace[2] == (4, 7, 64)


def test_rows_at_keeps_the_named_places(llama):
    ids, mask = padded(ROWS)
    whole = llama.trace(ids, mask, reduce=lambda layer, h, mask: h)
    rows, columns = torch.tensor([0, 3, 3]), torch.tensor([6, 0, 5])
    kept = llama.trace(ids, mask, reduce=rows_at(rows, columns))
    assert torch.equal(kept[3], whole[3][rows, columns])


@pytest.mark.parametrize("layers", [[5], [-1], [0, 9]])
def test_a_layer_that_does_not_exist_is_named(llama, layers):
    with pytest.raises(ValueError, match=r"layer (5|-1|9) is not in 0 .. 4"):
        llama.trace(*padded(ROWS), reduce=lambda layer, h, mask: h, layers=layers)


def test_no_hook_is_left_after_a_reducer_that_raises(llama):
    with pytest.raises(ZeroDivisionError):
        llama.trace(*padded(ROWS), reduce=lambda layer, h, mask: 1 / 0)
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in llama.model.modules())


def test_tracing_makes_the_logits_of_one_position_only(llama):
    shapes = []
    handle = llama.model.lm_head.register_forward_hook(lambda module, args, out: shapes.append(tuple(out.shape)))
    llama.trace(*padded(ROWS), reduce=lambda layer, h, mask: None)
    logits(llama, *padded(ROWS), torch.tensor([[1], [0], [2], [3]]))
    handle.remove()
    assert shapes == [(4, 1, 411), (4, 1, 411)]


# ---- bad ids


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[5, 6], [5, 411]], [[1, 1], [1, 1]], r"row 1 holds id 411, which has no embedding \(the model has 411\)"),
        ([[5, -1]], [[1, 1]], "row 0 holds id -1"),
        ([[5, 6], [0, 0]], [[1, 1], [0, 0]], "row 1 holds no token"),
        ([[5] * 257], [[1] * 257], "row 0 has 257 tokens; the model reads 256"),
    ],
)
def test_bad_ids_are_named_before_the_model_sees_them(llama, ids, mask, message):
    with pytest.raises(InputError, match=message):
        llama.logits(torch.tensor(ids), torch.tensor(mask))


def test_ids_under_the_mask_may_be_anything(llama):
    ids = torch.tensor([[5, 6, -100], [7, 8, 9]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.equal(logits(llama, ids, mask)[0, :2], logits(llama, ids.clamp(min=0), mask)[0, :2])


# ---- a live module, left as found


def live() -> torch.nn.Module:
    torch.manual_seed(0)
    config = models.CONFIGS["gpt2"]()
    config.resid_pdrop = config.attn_pdrop = config.embd_pdrop = 0.5
    return AutoModelForCausalLM.from_config(config)


def test_a_wrapped_model_in_training_mode_is_measured_without_dropout_and_stays_in_training_mode():
    model = live().train()
    model.transformer.h[1].eval()
    before = {name: module.training for name, module in model.named_modules()}
    subject = wrap(model)
    first, second = (logits(subject, *padded(ROWS)) for _ in range(2))
    assert torch.equal(first, second)
    subject.trace(*padded(ROWS), reduce=lambda layer, h, mask: None)
    subject.readout(torch.randn(2, 64))
    subject.head()
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())


def test_logits_follow_the_callers_gradient_mode():
    subject = wrap(live())
    out = subject.logits(*padded(ROWS))
    assert out.requires_grad
    out.sum().backward()
    assert subject.model.transformer.wte.weight.grad is not None
    assert not logits(subject, *padded(ROWS)).requires_grad


def test_without_a_tokenizer_ids_are_read_and_text_is_not():
    subject = wrap(live())
    assert isinstance(subject, Subject)
    assert logits(subject, *padded(ROWS)).shape == (4, 7, 411)
    (total, n), *_ = score_sequences(subject, [TokenSequence((5, 6, 7), 1)])
    assert (total < 0, n) == (True, 2)
    assert subject.head().vocab == 411
    with pytest.raises(InputError, match="wrapped without a tokenizer"):
        subject.tokenizer  # noqa: B018


def test_a_padded_head_knows_its_real_entries():
    subject = wrap(models.model("padded_llama"), models.tokenizer())
    assert (subject.vocab_size, subject.head().vocab) == (432, 411)


def test_autocast_and_half_precision_products_are_off_while_measuring(llama):
    plain = logits(llama, *padded(ROWS))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(logits(llama, *padded(ROWS)), plain)
        assert torch.is_autocast_enabled("cpu")


def test_half_precision_gives_float32_logits(zoo):
    half = load(zoo["llama"], dtype="bfloat16")
    out = logits(half, *padded(ROWS))
    assert out.dtype == torch.float32
    assert half.trace(*padded(ROWS), reduce=lambda layer, h, mask: h.dtype)[2] == torch.bfloat16
    assert half.readout(torch.randn(2, 64)).dtype == torch.float32


# ---- adapters share a module


def peft_subject(**options):
    import peft

    torch.manual_seed(1)
    model = peft.get_peft_model(models.model("llama"), peft.LoraConfig(r=4, **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return wrap(model, models.tokenizer()), model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_policy_and_reference_take_turns_on_one_module_also_from_threads():
    policy, model = peft_subject(target_modules=["q_proj", "v_proj"])
    reference = policy.without_adapter()
    on, off = logits(policy, *padded(ROWS)), logits(reference, *padded(ROWS))
    assert torch.equal(off, logits(wrap(models.model("llama")), *padded(ROWS)))
    assert not torch.allclose(on, off, atol=1e-3)
    wrong = []

    def repeat(subject, expected):
        for _ in range(20):
            if not torch.equal(logits(subject, *padded(ROWS)), expected):
                wrong.append(subject.name)

    threads = [threading.Thread(target=repeat, args=pair) for pair in ((policy, on), (reference, off))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert any(parameter.requires_grad for name, parameter in model.named_parameters() if "lora_" in name)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_on_the_head_leaves_no_simple_head_but_a_right_readout():
    """The class is still named Linear, and its weight is the base's: the kernel would read the wrong logits."""
    policy, model = peft_subject(target_modules=["lm_head"])
    assert type(model.get_base_model().lm_head).__name__ == "Linear"
    assert policy.head() is None
    ids, mask = padded(ROWS)
    for subject in (policy, policy.without_adapter()):
        last = subject.trace(ids, mask, reduce=lambda layer, h, mask: h, layers=[4])[4]
        with torch.no_grad():
            assert (subject.readout(last) - logits(subject, ids, mask))[mask.bool()].abs().max() <= CLOSE
    weight = model.get_base_model().lm_head.weight
    with torch.no_grad():
        assert (last @ weight.T - policy.readout(last)).abs().max() > 0.1


def test_a_model_without_an_adapter_has_no_reference_of_its_own(llama):
    with pytest.raises(InputError, match="no adapter on it; name the reference"):
        llama.without_adapter()


# ---- generation


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return ["The quick brown", "A language model reads one token after another and", "In the morning"]


@pytest.mark.parametrize("subject", ["llama", "gpt2", "gemma2", "bloom", "rwkv", "mamba"], indirect=True)
def test_generation_is_greedy_and_does_not_depend_on_the_batch(subject, prompts):
    together = subject.generate(prompts, max_new_tokens=6)
    assert together == [subject.generate([prompt], max_new_tokens=6)[0] for prompt in prompts]
    ids = subject.tokenizer(prompts[0])["input_ids"]
    for _ in range(6):
        z = logits(subject, *padded([ids]))[0, -1]
        ids = [*ids, int(z.argmax())]
        if ids[-1] == 2:
            break
    new = ids[len(subject.tokenizer(prompts[0])["input_ids"]) :]
    assert together[0] == subject.tokenizer.decode(new, skip_special_tokens=True)


def test_sampling_settings_of_the_checkpoint_do_not_leak(llama, prompts):
    clean = llama.generate(prompts, max_new_tokens=8)
    own = llama.model.generation_config
    own.repetition_penalty = 1.3
    try:
        assert llama.generate(prompts, max_new_tokens=8) == clean
        assert llama.generate(prompts, max_new_tokens=8, repetition_penalty=5.0) != clean
        assert llama.model.generation_config is own
    finally:
        own.repetition_penalty = 1.0


def test_public_names_lead_here(llama):
    assert isinstance(llama, Subject)
    assert alignscope.load is load
    assert alignscope.wrap is wrap

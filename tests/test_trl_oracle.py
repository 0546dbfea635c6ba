"""TRL 1.16 as an oracle: its own losses on the same log-probabilities, and what its trainers log on the same pairs.

Reached through real trainers on tiny random models, and, for exact numbers and gradients, through `DPOTrainer`'s loss
on a stand-in for the forward pass. TRL's names: our dpo is `sigmoid`; cdpo and dpo_soft are `aot` on one pair (its
`sigmoid` ignores label_smoothing); dpo_gamma is `sigmoid` on a scaled reference; ipo is `ipo` at one token a side, our
ipo_norm at any; bco is `bco_pair` at delta = 0. Not reached: bco with a running mean, whose trainer is gone, and ORPO's
sum of both terms, since TRL's NLL runs over the prompt too.
"""

import copy
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import transformers as hf
from torch import Tensor

import alignscope
import zoo
from alignscope import PairScores
from alignscope.diagnose.objectives import objective_table, reward_trainer_metrics, trl_metrics

pytest.importorskip("trl")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),  # a default of TRL's
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # read by TRL
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),  # where TRL keeps CPO and ORPO
]

FLOAT32 = 1e-4  # relative, on means of nats: TRL sums float32 log-probabilities in float32
ROWS = [
    {"prompt": "one:", "chosen": " xyz", "rejected": " w"},
    {"prompt": "A language model ", "chosen": "reads", "rejected": "measures one token after another"},  # pieces merge
    {"prompt": "In the morning", "chosen": " the children went to school", "rejected": " nobody"},
    {"prompt": "The fox:\n", "chosen": "jumps over the dog", "rejected": "lazy"},
]
COLUMNS = ["policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected", "n_chosen", "n_rejected"]
PAIRS = [
    [-10.0, -12.0, -11.0, -12.0, 5, 8],
    [-31.5, -4.25, -20.0, -6.0, 9, 2],
    [-3.0, -55.0, -8.0, -30.0, 1, 17],
    [-7.0, -7.0, -7.0, -7.0, 4, 4],
]
ALPHA, EPS, BETA = 0.8, 0.1, 0.1
# ours -> TRL's name, label_smoothing, factor on the reference
TRL = {
    "dpo": ("sigmoid", 0.0, 1.0),
    "dpo_soft": ("aot", 1 - ALPHA, 1.0),
    "cdpo": ("aot", EPS, 1.0),
    "robust": ("robust", EPS, 1.0),
    "dpo_gamma_0": ("sigmoid", 0.0, 0.0),
    "dpo_gamma_0.5": ("sigmoid", 0.0, 0.5),
    "dpo_gamma_2": ("sigmoid", 0.0, 2.0),
    "hinge": ("hinge", 0.0, 1.0),
    "ipo": ("ipo", 0.0, 1.0),
    "ipo_norm": ("ipo", 0.0, 1.0),
    "sigmoid_norm": ("sigmoid_norm", 0.0, 1.0),
    "bco": ("bco_pair", 0.0, 1.0),
    "apo_zero": ("apo_zero", 0.0, 1.0),
    "nca": ("nca_pair", 0.0, 1.0),
    "sppo_hard": ("sppo_hard", 0.0, 1.0),
}


def policy_and_reference():
    """Two tiny Llamas that differ by noise; fresh ones each time, since a trainer rewires what it is given."""
    policy = zoo.model("llama")
    reference = copy.deepcopy(policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return policy, reference


def scored(rows, **options) -> PairScores:
    policy, reference = (alignscope.wrap(model, zoo.tokenizer()) for model in policy_and_reference())
    return alignscope.score_pairs(policy, reference, rows, boundary="accept", **options)


@pytest.fixture(scope="module")
def scores() -> PairScores:
    return scored(ROWS, template="none")


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> dict:
    """What every TRL config gets: no log files, no progress, one batch for all pairs."""
    out = str(tmp_path_factory.mktemp("trl"))
    common = {"output_dir": out, "report_to": "none", "use_cpu": True, "bf16": False, "disable_tqdm": True}
    return common | {"per_device_eval_batch_size": 8, "per_device_train_batch_size": 8}


@pytest.fixture(scope="module", autouse=True)
def no_progress_bars():
    import datasets

    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture(scope="module")
def dpo_trainer(arguments):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference = policy_and_reference()
    made = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(beta=BETA, **arguments),
        train_dataset=Dataset.from_list(ROWS),
        eval_dataset=Dataset.from_list(ROWS),
        processing_class=zoo.tokenizer(),
    )
    made.model.eval()
    return made


def evaluated(trainer_class, config_class, rows, tokenizer, **options) -> dict[str, float]:
    """What a trainer without a reference model, or with its own, logs before the first step."""
    from datasets import Dataset

    more = {key: options.pop(key) for key in ("ref_model",) if key in options}
    model = options.pop("model")
    dataset = Dataset.from_list(rows)
    made = trainer_class(
        model=model,
        args=config_class(**options),
        train_dataset=dataset,
        eval_dataset=dataset,
        processing_class=tokenizer,
        **more,
    )
    return made.evaluate()


# ---- the losses alone


def trl_loss(trainer, monkeypatch, name: str, row: list[float]) -> tuple[float, float, float]:
    """Loss, pull on chosen and pull on rejected by TRL's code and autograd, float64, one pair."""
    loss_type, smoothing, factor = TRL[name]
    lw, ll, rw, rl, nw, nl = row
    told = {"loss_types": [loss_type], "label_smoothing": smoothing, "precompute_ref_logps": True}
    told |= {"_metrics": {"train": defaultdict(list), "eval": defaultdict(list)}}  # else its next evaluation logs these
    for attribute, value in told.items():
        monkeypatch.setattr(trainer, attribute, value)
    totals = torch.tensor([lw, ll], dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([1, 1] if name == "ipo" else [int(nw), int(nl)])
    width = int(lengths.max()) + 1  # one token of prompt
    mask = (torch.arange(width) >= 1) & (torch.arange(width) <= lengths[:, None])

    def forward(**inputs) -> SimpleNamespace:
        per_token = torch.where(mask[:, 1:], (totals / lengths)[:, None], 0.0)
        nothing = torch.zeros_like(per_token)
        return SimpleNamespace(log_probs=per_token, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool())

    loss: Tensor = trainer.compute_loss(
        forward,
        {
            "input_ids": torch.zeros(2, width, dtype=torch.long),
            "attention_mask": torch.ones(2, width, dtype=torch.long),
            "completion_mask": mask.long(),
            "ref_chosen_logps": torch.tensor([rw * factor], dtype=torch.float64),
            "ref_rejected_logps": torch.tensor([rl * factor], dtype=torch.float64),
        },
    )
    loss.backward()
    return loss.item(), -totals.grad[0].item(), totals.grad[1].item()


@pytest.mark.parametrize("name", TRL)
def test_loss_and_pulls_equal_those_of_trl(dpo_trainer, monkeypatch, name):
    scores = PairScores.from_frame(pd.DataFrame(PAIRS, columns=COLUMNS))
    found = objective_table(scores, BETA, preference=ALPHA, eps=EPS, delta=0.0).pairs
    ours = found[[f"{name}_{part}" for part in ("loss", "pull_chosen", "pull_rejected")]].to_numpy()
    theirs = [trl_loss(dpo_trainer, monkeypatch, name, row) for row in PAIRS]
    # robust divides by 1 - 2 eps after its sum: 1e-16 of its terms, 1e-14 of a small difference
    assert ours == pytest.approx(torch.tensor(theirs, dtype=torch.float64).numpy(), rel=1e-12, abs=1e-14)


# ---- what the trainers log


def test_a_dpo_evaluation_logs_what_trl_metrics_gives(dpo_trainer, scores):
    logged, ours = dpo_trainer.evaluate(), trl_metrics(scores, BETA)
    assert 0 < ours["eval_rewards/accuracies"] < 1  # else the comparison could not fail
    assert {name: logged[name] for name in ours} == pytest.approx(ours, rel=FLOAT32)


def test_a_dpo_evaluation_on_messages_logs_what_trl_metrics_gives(dpo_trainer):
    from datasets import Dataset

    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = [{key: [{"role": roles[key], "content": row[key].strip()}] for key in roles} for row in ROWS]
    ours = trl_metrics(scored(rows), BETA)
    logged = dpo_trainer.evaluate(eval_dataset=Dataset.from_list(rows))
    assert {name: logged[name] for name in ours} == pytest.approx(ours, rel=FLOAT32)


def test_trl_logs_means_of_batch_means_where_we_take_the_mean_over_pairs(dpo_trainer, scores, monkeypatch):
    monkeypatch.setattr(dpo_trainer.args, "per_device_eval_batch_size", 3)  # 3 pairs, then 1
    logged, ours = dpo_trainer.evaluate(), trl_metrics(scores, BETA)
    last = scores.policy_chosen[3]
    expected = ((scores.policy_chosen.sum() - last) / 3 + last) / 2
    assert logged["eval_logps/chosen"] == pytest.approx(expected, rel=FLOAT32)
    assert logged["eval_logps/chosen"] != pytest.approx(ours["eval_logps/chosen"], rel=10 * FLOAT32)


def test_a_kto_evaluation_has_half_our_loss_at_its_own_reference_point(scores, arguments):
    from trl import KTOConfig, KTOTrainer

    policy, reference = policy_and_reference()
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in ROWS
        for side in ("chosen", "rejected")
    ]
    options = {"model": policy, "ref_model": reference, "beta": BETA}
    logged = evaluated(KTOTrainer, KTOConfig, rows, zoo.tokenizer(), **options, **arguments)
    assert logged["eval_kl"] > 0.1  # a point at 0 would test nothing
    losses = objective_table(scores, BETA, z0=logged["eval_kl"]).losses.set_index("objective")["mean_loss"]
    assert logged["eval_loss"] == pytest.approx(losses["kto"] / 2, rel=5e-6)
    assert logged["eval_loss"] != pytest.approx(losses["apo_zero"] / 2, rel=5e-6)  # what z0 = 0 would give


def without_bos() -> hf.PreTrainedTokenizerFast:
    """The trainers under trl.experimental put a BOS before each prompt, whatever the tokenizer does."""
    made = zoo.tokenizer()
    made.bos_token = None
    return made


@pytest.mark.parametrize(
    ("name", "options"),
    [("cpo", {"beta": BETA, "cpo_alpha": 1.0}), ("simpo", {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0})],
)
def test_a_cpo_evaluation_at_one_pair_a_batch_has_our_loss(scores, arguments, name, options):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    # its NLL is a mean over the tokens of a batch
    more = arguments | {"per_device_eval_batch_size": 1, "remove_unused_columns": False}
    model = policy_and_reference()[0]
    logged = evaluated(CPOTrainer, CPOConfig, ROWS, without_bos(), model=model, **options, **more)
    losses = objective_table(scores, BETA).losses.set_index("objective")["mean_loss"]
    assert logged["eval_loss"] == pytest.approx(losses[name], rel=FLOAT32)


def test_an_orpo_evaluation_logs_our_log_odds_and_their_loss(scores, arguments):
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    model, options = policy_and_reference()[0], arguments | {"beta": 0.1, "remove_unused_columns": False}
    logged = evaluated(ORPOTrainer, ORPOConfig, ROWS, without_bos(), model=model, **options)
    found = objective_table(scores, orpo_lambda=0.1).pairs
    likelihood = -scores.policy_chosen / scores["n_chosen"]
    assert logged["eval_log_odds_chosen"] == pytest.approx(found["orpo_view"].mean(), rel=FLOAT32)
    # each without its NLL: TRL's runs over prompt and completion
    odds = (found["orpo_loss"] - likelihood).mean()
    assert logged["eval_loss"] - logged["eval_nll_loss"] == pytest.approx(odds, rel=FLOAT32)
    assert logged["eval_logps/chosen"] == pytest.approx(-likelihood.mean(), rel=FLOAT32)


def test_a_reward_evaluation_logs_what_reward_trainer_metrics_gives(tmp_path: Path, arguments):
    from trl import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    config = hf.LlamaConfig(vocab_size=zoo.ENTRIES, num_labels=1, **zoo.IDS, **zoo.GROUPED)
    model = hf.LlamaForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    scores = scored(ROWS, template="none", reward=tmp_path)
    ours = reward_trainer_metrics(scores.explicit_chosen, scores.explicit_rejected)
    logged = evaluated(RewardTrainer, RewardConfig, ROWS, zoo.tokenizer(), model=model, **arguments)
    assert 0 < ours["eval_accuracy"] < 1
    assert {name: logged[name] for name in ours} == pytest.approx(ours, rel=FLOAT32)

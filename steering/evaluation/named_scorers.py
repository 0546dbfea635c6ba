"""A scorer by its name on a command line: offline, keyword:REGEX, reward:FOLDER."""

from collections.abc import Sequence

from ...errors import InputError
from ...probes.inputs import Source
from ...probes.pair_rows import plain_text
from ...probes.reward import load_reward
from ...probes.subject import Subject
from ..encoded import quadruple_encoder
from ..quadruples import QuadrupleFile
from .asked import AskedPrompt, encoded, read_asked
from .generating import Wanted, generate_steered
from .judges import KeywordScorer, RewardScorer
from .offline import OfflineScorer, require_pairs
from .ratings import Scorer

KINDS = "offline, keyword:REGEX or reward:FOLDER"
REFERENCES = 4  # unsteered answers that a reward is held against, drawn at temperature 1 [reconstructed]


def require_scorer(name: str, fitted: bool) -> None:
    """InputError for another name, and where nothing is there to fit the offline scorer on. fitted: quadruples are."""
    kind, _, rest = name.partition(":")
    if (kind, rest) != ("offline", "") and (kind not in ("keyword", "reward") or not rest):
        raise InputError(f"scorer '{name}': expected {KINDS}")
    if kind == "keyword":
        KeywordScorer([rest])
    if not fitted:
        needs = "is fitted on quadruples" if kind == "offline" else "rates one of three; the others are rated offline"
        raise InputError(f"scorer '{name}': it {needs}; give quadruples of the concept (training=, --training)")


def require_rated(name: str, prompts: Sequence[AskedPrompt], quadruples: QuadrupleFile | None) -> None:
    """InputError for a prompt that the scorer of this name cannot rate; see offline.require_pairs."""
    if quadruples is not None and name.partition(":")[0] != "keyword":  # which rates the concept itself
        require_pairs(prompts, quadruples)


def named_scorer(
    subject: Subject,
    name: str,
    quadruples: Source | QuadrupleFile,
    prompts: Sequence[AskedPrompt],
    *,
    max_new_tokens: int,
    temperature: float | int,
    seed: int = 0,
    template: str | None = None,
    device: str = "auto",
) -> Scorer:
    """offline: OfflineScorer fitted on the quadruples; keyword: the concept by the expression, the rest offline;
    reward: how well the instruction is followed, by a reward model against 4 unsteered answers to each prompt, the rest
    offline. Raises InputError as they do.
    """
    require_scorer(name, fitted=True)
    offline = OfflineScorer.fit(
        subject, quadruples, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, template=template
    )
    offline = offline.paired(prompts)
    kind, _, rest = name.partition(":")
    if kind == "offline":
        return offline
    if kind == "keyword":
        return KeywordScorer([rest], rest=offline)
    reward = load_reward(rest, device=device)
    references: dict[str, list[str]] = {}
    asked = [{"prompt": prompt.text} for prompt in prompts]
    encoder = quadruple_encoder(subject, template, "none", "prompts")
    given = encoded(read_asked(asked), encoder, max_new_tokens).prompts
    for draw in range(REFERENCES):
        made = generate_steered(
            subject, None, [Wanted(prompt.ids) for prompt in given], max_new_tokens=max_new_tokens, temperature=1.0,
            seed=seed + 1 + draw,
        )  # fmt: skip
        for prompt, answer in zip(given, made, strict=True):
            references.setdefault(plain_text(prompt.text), []).append(answer.text)
    return RewardScorer(reward, references, rates="instruction", rest=offline)

"""What SPINAL says in words: the sections "spinal_trace" (one model) and "spinal" (a comparison), and their findings.

No sentence assumes a sign: whether training contracts or expands is contested. A family of tests decides, no layer.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from .report import Estimate, Finding, Section, SectionResult
from .spinal_contrast import MIN_TESTED, terminal_window
from .spinal_controls import ALARM
from .spinal_estimates import trace_estimates
from .spinal_formats import unpacked_finding
from .spinal_null_findings import CONTROLS_WANTED, beside_controls, caveat, controls_findings
from .spinal_score import DETECTED_NAMES
from .spinal_settings import RESOLUTION
from .spinal_trace import SAMPLING_ONLY

if TYPE_CHECKING:
    from .spinal_compare import SpinalComparison
    from .spinal_trace import SpinalTrace

WINDOWS = ("d_alpha_terminal", "d_alpha_terminal_wide", "d_alpha_terminal_bulk")
LAYERS = (
    "a row a model and layer (0 = embeddings): exponent with gates, rank measures, entropy; n prompts, n_sampled of "
    "them with sampled positions; of pooled rows n_rows, n_eff (independent rows they are worth), few_effective_rows"
)
STEPS = (
    "a row a model and step l to l + 1: angle at the last token and at sampled positions (n, n_sampled), radians; on a "
    "reduced vocabulary angle_bucketed <= angle <= angle_dropped, and angle_renormalised (reconstructed)"
)
SLOPES = "a row a model, layer and rank: the local exponent alpha(k); one power law would be flat"
CONTRAST = "a row a layer: differences of exponent and entropy, aligned minus base, the same-layer distance; n prompts"
TRANSPORT = (
    "a row a step 1 to L - 1: difference of angles, aligned minus base, with t and family-adjusted p; n prompts, "
    "n_sampled of them with sampled positions"
)
CONTROLS = (
    "a row a control and quantity over the last blocks: aligned minus base (effect), control minus base, aligned minus "
    "control (net), with intervals; p of noise seeds; verdict"
)
DETECTED = (
    "a row a block: how far the two models differ there, in standard errors, on either half of the prompts; whether "
    "the block is in that half's window"
)
COMPONENTS = "a row a part of the reconstructed composite: value or reason; not comparable with the paper"
HALVES = "a row a layer: the base on one half of its prompts minus the base on the other half; n prompts in both"


def trace_section(trace: "SpinalTrace") -> SectionResult:
    """Section "spinal_trace": how one model's residual stream contracts and travels."""
    window, no_window = _window(trace.model.n_layers)
    estimates = trace_estimates(trace, window, no_window)
    section = Section(
        name="spinal_trace",
        title="Contraction and transport by layer",
        question=f"How does the residual stream of {trace.model.name} contract and travel over its "
        f"{trace.model.n_layers} blocks?",
        summary=_trace_summary(trace, estimates, window),
        estimates=estimates,
        tables={"layers": LAYERS, "steps": STEPS, "local_slopes": SLOPES},
        settings=_settings(trace.settings, trace.token_hash),
        counts=trace.counts,
        warnings=list(trace.warnings),
    )
    tables = {"layers": trace.layers, "steps": trace.steps, "local_slopes": trace.local_slopes}
    return SectionResult(section=section, tables=tables, findings=_trace_findings(trace, estimates))


def comparison_section(comparison: "SpinalComparison") -> SectionResult:
    """Section "spinal": aligned minus base, with the controls beside it."""
    tables = {
        "layers": comparison.layers,
        "contrast": comparison.contrast,
        "transport": comparison.transport,
        "steps": comparison.steps,
        "local_slopes": comparison.local_slopes,
    }
    described = {"layers": LAYERS, "contrast": CONTRAST, "transport": TRANSPORT, "steps": STEPS, "local_slopes": SLOPES}
    if comparison.halves is not None:
        tables["halves"], described["halves"] = comparison.halves.table, HALVES
    tables["detected"], described["detected"] = comparison.detected.to_frame(), DETECTED
    if comparison.score is not None:
        tables["components"], described["components"] = comparison.components, COMPONENTS
    if len(comparison.control_effects):
        tables["controls"], described["controls"] = comparison.control_effects, CONTROLS
    base, aligned = comparison.names
    section = Section(
        name="spinal",
        title="Contraction and transport, aligned against base",
        question=f"Does the residual stream of {aligned} contract or travel otherwise than that of {base}, on the same "
        f"{comparison.base.n} prompts?",
        summary=_comparison_summary(comparison),
        estimates=comparison.estimates,
        tables=described,
        settings=_settings(comparison.settings, comparison.base.token_hash),
        counts=comparison.base.counts,
        warnings=list(comparison.warnings),
    )
    return SectionResult(section=section, tables=tables, findings=_comparison_findings(comparison))


def _settings(settings: dict[str, Any], token_hash: str) -> dict[str, Any]:
    shown = {name: value for name, value in settings.items() if name != "key"}
    window = settings["window"]
    return {**shown, "window": window if window == "auto" else list(window), "token_hash": token_hash}


def _window(n_layers: int) -> tuple[tuple[int, int] | None, str | None]:
    try:
        return terminal_window("last_third", n_layers), None
    except InputError:
        return None, f"{n_layers} blocks: the last third needs 3"


def _trace_summary(trace: "SpinalTrace", estimates: dict[str, Estimate], window: tuple[int, int] | None) -> str:
    path, alpha = estimates["path_length"], estimates["alpha_terminal"]
    where = "" if window is None else f" over blocks {window[0]} to {window[1]}"
    travels = (
        f"On {trace.n} prompts the read-out travels {path} from block 1 to block {trace.model.n_layers}"
        if path.value is not None
        else f"Read on {trace.n} prompts"
    )
    contracts = (
        f"the spectrum's exponent{where} is {alpha} ({SAMPLING_ONLY})"
        if alpha.value is not None
        else f"there is no exponent{where}: {alpha.reason}"
    )
    return f"{travels}; {contracts}."


def _trace_findings(trace: "SpinalTrace", estimates: dict[str, Estimate]) -> tuple[Finding, ...]:
    findings = [
        Finding(
            severity="info",
            section="spinal_trace",
            sentence=_trace_summary(trace, estimates, _window(trace.model.n_layers)[0])
            + " One model alone shows a shape, not what training did.",
            rests_on=["spinal_trace.path_length", "spinal_trace.alpha_terminal"],
            next_step="Compare it with its base on the same prompts.",
        )
    ]
    flagged = _gate_finding(trace, trace.model.name, "spinal_trace", ["spinal_trace.gates_passed"])
    return (*findings, *unpacked_finding(trace), *flagged)


def _gate_finding(trace: "SpinalTrace", name: str, section: str, rests_on: list[str]) -> list[Finding]:
    """Says how many exponents the gates flag: expected, and no reason to distrust a difference at equal N."""
    fitted = trace.layers[trace.layers.alpha.notna()]
    flagged = fitted[~fitted.gates_passed.astype(bool)]
    if not len(flagged):
        return []
    return [
        Finding(
            severity="info",
            section=section,
            sentence=f"The gates flag the exponents of {len(flagged)} of {len(fitted)} layers of {name}: "
            "read them as rough descriptions, not as constants of the model.",
            rests_on=rests_on,
            next_step="See the column `reason` of the table `layers`; more prompts and differences at equal N help.",
        )
    ]


def _comparison_summary(comparison: "SpinalComparison") -> str:
    base, aligned = comparison.names
    if comparison.identical:
        return f"{aligned} has the weights of {base}: every contrast is 0."
    transport, alpha = comparison.estimates["transport_p"], comparison.estimates["alpha_p"]
    few = _too_few(transport)
    shown = f"{_p(transport)} ({few})" if transport.value is not None and few else _p(transport)
    tests = f"transport p = {shown}, contraction p = {_p(alpha)}, each over all layers"
    distance = _distance_sentence(comparison)
    if comparison.alarm:
        return (
            f"{aligned} differs from {base} by more than the choice of prompts explains ({tests}): "
            f"{_directions(comparison)}. {distance}{beside_controls(comparison)}{caveat(comparison)}"
        )
    tested = ["transport"] if transport.value is not None and not few else []
    tested += ["contraction"] if alpha.value is not None else []
    if not tested:
        return f"Whether {aligned} differs from {base} in transport or contraction is open: {few or tests}. {distance}"
    return (
        f"No difference in {' or '.join(tested)} between {aligned} and {base} was found that the choice of prompts "
        f"does not explain ({tests}). {distance}"
    )


def _too_few(transport: Estimate) -> str | None:
    """Why the test of transport could not reach the alarm, whatever the models do."""
    clusters = transport.n_clusters or 0
    return f"too few prompts to test ({clusters} clusters; {MIN_TESTED} needed)" if clusters < MIN_TESTED else None


def _distance_sentence(comparison: "SpinalComparison") -> str:
    """How far apart the read-outs are, which neither family of tests sees; or why that is not known."""
    terminal, largest = (comparison.estimates[f"base_distance_{name}"] for name in ("terminal", "max"))
    if terminal.value is not None and comparison.window is not None:
        first, last = comparison.window
        return f"At the same layer their read-outs lie {terminal} apart over blocks {first} to {last}."
    if largest.value is not None:
        return f"At the same layer their read-outs lie at most {largest} apart."
    return f"How far apart their read-outs lie at the same layer is not known: {largest.reason}."


def _directions(comparison: "SpinalComparison") -> str:
    """What moved over the last blocks, in words; a direction only where the interval leaves 0 out."""
    e = comparison.estimates
    step = _direction(e["d_transport_terminal"], "the mean step of the read-out", "longer", "shorter")
    words = ("larger", "smaller") if _windows_disagree(e) else ("larger (contraction)", "smaller (expansion)")
    exponent = _direction(e["d_alpha_terminal"], "the spectrum's exponent", *words)
    where = "" if comparison.window is None else f"over blocks {comparison.window[0]} to {comparison.window[1]} "
    return f"{where}{step}, and {exponent}"


def _windows_disagree(estimates: dict[str, Estimate]) -> bool:
    """Whether the exponent clearly rose on one window of ranks and clearly fell on another."""
    shown = [estimates[name] for name in WINDOWS]
    clear = [e.value > 0 for e in shown if e.value and e.low is not None and e.high is not None and e.low * e.high > 0]
    return len(set(clear)) == 2


def _window_finding(comparison: "SpinalComparison") -> list[Finding]:
    e = comparison.estimates
    if not _windows_disagree(e):
        return []
    tail, wide, bulk = (e[name] for name in WINDOWS)
    return [
        Finding(
            severity="notice",
            section="spinal",
            sentence="Whether the spectrum contracted or expanded depends on the ranks that are fitted: the exponent "
            f"changed by {tail} on the chosen window, {wide} on ranks .05 to .5 and {bulk} on ranks .1 to .9.",
            rests_on=[f"spinal.{name}" for name in WINDOWS],
            next_step="Do not report the sign alone: the local slopes (table local_slopes) show at which ranks the two "
            "spectra cross.",
        )
    ]


def _direction(estimate: Estimate, subject: str, up: str, down: str) -> str:
    if estimate.value is None:
        return f"for {subject} there is no number ({estimate.reason})"
    if estimate.low is None or estimate.high is None:
        return f"{subject} changes by {estimate} ({estimate.reason})"
    if abs(estimate.value) < RESOLUTION or estimate.low <= 0 <= estimate.high:
        return f"{subject} shows no clear change ({estimate})"
    ends = sorted((abs(estimate.low), abs(estimate.high)))
    size = f"{abs(estimate.value):.3g} [{ends[0]:.3g}, {ends[1]:.3g}] {estimate.unit}".rstrip()
    return f"{subject} is {up if estimate.value > 0 else down} by {size}"


def _comparison_findings(comparison: "SpinalComparison") -> tuple[Finding, ...]:
    families = ["spinal.transport_p", "spinal.alpha_p"]
    terminal = ["spinal.d_transport_terminal", "spinal.d_alpha_terminal"]
    findings = [
        Finding(
            severity="notice" if comparison.alarm or comparison.identical else "info",
            section="spinal",
            sentence=_comparison_summary(comparison),
            rests_on=[*families, *terminal],
            next_step=_next_step(comparison),
        )
    ]
    findings += _window_finding(comparison)
    findings += _distance_finding(comparison)
    findings += _where_finding(comparison)
    findings += _score_finding(comparison)
    findings += controls_findings(comparison)
    findings += _halves_finding(comparison)
    flagged = _gate_finding(comparison.aligned, comparison.names[1], "spinal", ["spinal.d_alpha_terminal"])
    return (*findings, *flagged)


def _next_step(comparison: "SpinalComparison") -> str:
    if comparison.identical:
        return "Check that the right two checkpoints were named."
    return CONTROLS_WANTED if caveat(comparison) else "Read the rest that the controls leave, in the table controls."


def _where_finding(comparison: "SpinalComparison") -> list[Finding]:
    """Where over depth the change sits, found on one half of the prompts and estimated on the other."""
    if comparison.identical:
        return []
    return [
        Finding(
            severity="info",
            section="spinal",
            sentence=comparison.detected.summary(),
            rests_on=[f"spinal.{name}" for name in DETECTED_NAMES],
            next_step="",
        )
    ]


def _score_finding(comparison: "SpinalComparison") -> list[Finding]:
    if comparison.score is None or comparison.identical:
        return []
    return [
        Finding(
            severity="info",
            section="spinal",
            sentence=comparison.score.summary(),
            rests_on=[f"spinal.score_{name}" for name in ("score", "delta", "coherence", "concentration")],
            next_step="Read the components, not their sum: no published table gives the score a scale.",
        )
    ]


def _distance_finding(comparison: "SpinalComparison") -> list[Finding]:
    largest = comparison.estimates["base_distance_max"]
    if comparison.identical or largest.value is None:
        return []
    base, aligned = comparison.names
    layer = int(comparison.contrast.layer.iloc[int(np.nanargmax(comparison.contrast.base_distance))])
    sentence = (
        f"Read out at the same layer, each through its own head, {aligned} and {base} are farthest apart at layer "
        f"{layer}, the largest of all layers: {largest} on average over {largest.n} prompts (0 = the same "
        "distribution, 3.14 = no token in common)."
    )
    if largest.value < RESOLUTION:
        sentence = (
            f"Read out at the same layer, {aligned} and {base} are nowhere farther apart than {RESOLUTION:g} rad on "
            f"average over {largest.n} prompts, which batching alone may move."
        )
    return [
        Finding(
            severity="info",
            section="spinal",
            sentence=sentence,
            rests_on=["spinal.base_distance_max"],
            next_step="A changed head or final norm shows at every layer; only a rise from about 0 locates a block.",
        )
    ]


def _halves_finding(comparison: "SpinalComparison") -> list[Finding]:
    if comparison.halves is None:
        return []
    control, e = comparison.halves, comparison.estimates
    tests = f"transport p = {_p(e['null_transport_p'])}, contraction p = {_p(e['null_alpha_p'])}"
    if math.isnan(control.transport_p) and math.isnan(control.alpha_p):
        return []
    base = comparison.names[0]
    return [
        Finding(
            severity="alarm" if control.alarm else "info",
            section="spinal",
            sentence=f"Control: {base} on one half of the prompts against the other half "
            + (
                f"raises an alarm ({tests}), though the halves are random; about 1 sound run in 20 does."
                if control.alarm
                else f"raises no alarm ({tests}; a family alarms under {ALARM})."
            ),
            rests_on=["spinal.null_transport_p", "spinal.null_alpha_p"],
            next_step="Repeat with other seeds; if it stays, related prompts may need a common prompt_id. The control "
            "checks the machinery (intervals and tests), not the prompts."
            if control.alarm
            else "",
        )
    ]


def _p(estimate: Estimate) -> str:
    if estimate.value is None:
        return f"none ({estimate.reason})"
    return f"{estimate.value:.2g}"

"""What must be said beside the numbers of a trace: few rows, rounding, gates."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from .spinal_formats import format_warning
from .spinal_gates import MAX_DEFLATED, ROUGH_DTYPES
from .spinal_settings import FINAL_ONLY

if TYPE_CHECKING:
    from .spinal_trace import TracedModel

FEW_PROMPTS = 500  # 512 are asked for; a few of them may be alike
ROWS_A_COLUMN = 4  # under so many independent rows a column an absolute exponent is biased (docs/spinal.md)
ONLY_LAST = "lens='final_only': only the last step and the entropy of the last layer are read out"


def trace_warnings(
    n: int, model: "TracedModel", layers: pd.DataFrame, settings: dict[str, Any], n_repeated: int = 0
) -> tuple[str, ...]:
    """Of n prompts and the table of layers; n_repeated: prompts that were dropped as repetitions."""
    found = []
    if n_repeated:
        found.append(f"{n_repeated} prompts repeat the tokens of another and were dropped")
    pooled = "n_eff" in layers
    if n < 46 and not pooled:
        found.append(f"{n} prompts: no exponent (46 are needed); angles and entropies stand")
    elif n < FEW_PROMPTS:
        found.append(f"{n} prompts: exponents are rough under {FEW_PROMPTS}; compare models at this same number only")
    if n >= 46 and n < ROWS_A_COLUMN * model.d_model and not pooled:
        found.append(
            f"{n} rows for {model.d_model} columns: under 4 rows a column the absolute exponent can carry a bias (in "
            "tests with 512 rows up to 5 % at a width of 576 and 14 % at 2048, more with fewer rows) that the interval "
            "does not cover; differences at equal N are the product"
        )
    if pooled:
        found += _few_effective_rows(model, layers)
    if model.dtype in ROUGH_DTYPES:
        found += _deflation_warning(model.dtype, layers)
    found += format_warning(settings)
    if settings.get("lens") == FINAL_ONLY:
        found.append(f"{ONLY_LAST}; of the other layers there is a spectrum, and no angle or entropy")
    fitted = layers[layers.alpha.notna()]
    if len(fitted) and not fitted.gates_passed.all():
        found.append(
            f"the gates flag {int((~fitted.gates_passed).sum())} of {len(fitted)} exponents of {model.name}: "
            "see the column `reason`"
        )
    return tuple(found)


def _few_effective_rows(model: "TracedModel", layers: pd.DataFrame) -> list[str]:
    """Says where pooled rows are worth fewer than 4 independent ones a column."""
    some = layers[layers.few_effective_rows]
    if not len(some):
        return []
    return [
        f"pooled rows: in {len(some)} of {len(layers)} layers they are worth fewer than 4 independent ones a column "
        f"(N_eff {some.n_eff.min():.0f} to {some.n_eff.max():.0f} of {int(layers.n_rows.iloc[0])} rows, "
        f"{ROWS_A_COLUMN * model.d_model} needed): the absolute exponent can carry a bias that the interval does not "
        "cover; differences at equal positions are the product"
    ]


def _deflation_warning(dtype: str, layers: pd.DataFrame) -> list[str]:
    """Says where an exponent hangs on which ranks count as rounding."""
    moved = (layers.alpha - layers.alpha_plain).abs()
    some = moved > MAX_DEFLATED
    if not some.any():
        return []
    return [
        f"leaving out the ranks under the rounding floor of {dtype} moves {int(some.sum())} exponents by more than "
        f"{MAX_DEFLATED} (at most {moved.max():.2g}): capture in float32"
    ]

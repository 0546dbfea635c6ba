"""A report in, pictures out. Figures compute no diagnostic; what a report does not hold is not drawn."""

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from .information_figures import information_figures
from .metric_figures import metric_figures
from .objective_figures import companion_figures, objective_figures
from .profiles import contrast_profile, layer_profile
from .ranking_figures import ranking_figures
from .reward_figures import reward_figures
from .series_figures import series_figures
from .spinal_figures import spinal_figures
from .steering_figures import steering_figures
from .weight_figures import weight_figures

if TYPE_CHECKING:
    from ..diagnose.report import Report

__all__ = [
    "companion_figures",
    "contrast_profile",
    "information_figures",
    "layer_profile",
    "objective_figures",
    "ranking_figures",
    "report_figures",
    "reward_figures",
    "series_figures",
    "spinal_figures",
    "steering_figures",
    "weight_figures",
]

_BY_SECTION = {
    "ranking": ranking_figures,
    "length": companion_figures,
    "displacement": companion_figures,
    "rewards": reward_figures,
    "objectives": objective_figures,
    "spinal": spinal_figures,
    "spinal_trace": spinal_figures,
    "weights": weight_figures,
    "information": information_figures,
    "series": series_figures,
    "metrics": metric_figures,
    "steering": steering_figures,
}


def report_figures(report: "Report") -> dict[str, go.Figure]:
    """Every figure of the report by name, 'section.figure'; sections that have none (doctor) add none.

    `figure.layout.meta` holds the title and how to read the figure, as plain text.
    """
    found = {}
    for section in report.sections:
        draw = _BY_SECTION.get(section.name)
        if draw is None:
            continue
        tables = {name: report.to_frame(f"{section.name}.{name}") for name in section.tables}
        for name, figure in draw(tables, section.estimates, settings=section.settings).items():
            found[f"{section.name}.{name}"] = figure
    return found

